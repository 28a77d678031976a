"""Merging our keys into somebody's JSON: nothing of theirs is lost, or nothing is done."""

import json

import pytest

from verger.connect.merge import Unmergeable, merge_json

OURS = '{"provider": {"verger": {"url": "new", "limit": {"context": 1}}}}'


def test_our_keys_are_added_and_theirs_stay() -> None:
    theirs = {
        "b": [1, {"ü": None}],
        "provider": {"verger": {"url": "old", "mine": True}, "x": {"limit": 1e400}},
        "a": 12345678901234567890,
    }
    merged = json.loads(merge_json(json.dumps(theirs), OURS))
    assert list(merged) == ["b", "provider", "a"]
    assert (merged["a"], merged["b"]) == (theirs["a"], theirs["b"])
    assert merged["provider"]["x"] == {"limit": 1e400}
    assert merged["provider"]["verger"] == {"url": "new", "mine": True, "limit": {"context": 1}}


def test_an_empty_file_becomes_ours() -> None:
    for empty in ("", " \n", "{}"):
        assert json.loads(merge_json(empty, OURS)) == json.loads(OURS)


def test_what_is_there_already_is_not_touched() -> None:
    text = '{"provider":\t{"verger": {"limit": {"context": 1}, "url": "new"} } }'
    assert merge_json(text, OURS) == text
    merged = merge_json('{"a": 1}', OURS)
    assert merge_json(merged, OURS) == merged


@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
def test_the_indentation_stays(indent: str) -> None:
    merged = merge_json(f'{{\n{indent}"a": "ü"\n}}', OURS)
    assert f'\n{indent}"a": "ü",\n{indent}"provider"' in merged


@pytest.mark.parametrize(
    "text",
    [
        '{\n // a comment\n "a": 1}',
        '{"a": 1,}',
        '{"a": 1, "a": 2}',
        '{"provider": {"x": 1, "x": 2}}',
        "[]",
        '{"provider": []}',
        '{"provider": {"verger": "x"}}',
        '{"provider": {"verger": {"limit": null}}}',
        "\ufeff{}",
        "[" * 100_000,
    ],
)
def test_what_could_lose_something_is_left_alone(text: str) -> None:
    with pytest.raises(Unmergeable):
        merge_json(text, OURS)
