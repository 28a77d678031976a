"""Stop strings: nothing of one is ever shown, however the text is cut to pieces."""

import itertools
import random

import pytest

from verger.formats.stop import StopStrings


def shown(strings: list[str], pieces: list[str]) -> str:
    stop = StopStrings(strings)
    return "".join(map(stop.feed, pieces)) + stop.flush()


@pytest.mark.parametrize(
    ("strings", "text", "expected"),
    [
        ([], "all of it", "all of it"),
        ([""], "all of it", "all of it"),
        (["END"], "one END two END", "one "),
        (["END"], "no end, only EN", "no end, only EN"),
        (["aab"], "aaab", "a"),
        (["abab", "b"], "xabab", "xa"),
        (["abcd", "bc"], "abcd", "a"),
        (["cd", "abcd"], "xabcd", "x"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["🌳"], "tree: 🌳!", "tree: "),
    ],
)
def test_text_ends_before_the_string_that_is_complete_first(
    strings: list[str], text: str, expected: str
) -> None:
    for cuts in range(len(text)):
        for places in itertools.combinations(range(1, len(text)), min(cuts, 2)):
            borders = [0, *places, len(text)]
            pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
            assert shown(strings, pieces) == expected
    assert shown(strings, list(text)) == expected


def test_a_possible_beginning_is_held_back_until_it_is_none() -> None:
    stop = StopStrings(["END"])
    assert [stop.feed(piece) for piece in ("a E", "N", "d", "E")] == ["a ", "", "ENd", ""]
    assert not stop.is_found
    assert stop.flush() == "E"


def test_nothing_is_shown_after_a_stop_string() -> None:
    stop = StopStrings(["."])
    assert stop.feed("one. two") == "one"
    assert stop.is_found
    assert stop.feed("three") == ""
    assert stop.flush() == ""


def test_random_texts_show_no_part_of_a_stop_string() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        text = "".join(rng.choices("abc", k=rng.randint(0, 20)))
        strings = ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(3)]
        ends = [text.find(string) + len(string) for string in strings if string in text]
        winners = [string for string in strings if string in text[: min(ends)]] if ends else []
        starts = [text.find(string) for string in winners]
        expected = text[: min(starts)] if starts else text
        assert shown(strings, list(text)) == shown(strings, [text]) == expected
