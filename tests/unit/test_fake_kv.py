"""The device double: it restores what belongs there, and notices everything that does not."""

import dataclasses
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from verger.engine.fake_kv import FakeKV
from verger.engine.steps import (
    Close,
    Cut,
    Edit,
    FreeSpan,
    FreeWindow,
    Import,
    Kept,
    KVGeometry,
    Move,
    Open,
    Place,
    Prefill,
    Running,
    Split,
    Stored,
)
from verger.messages import Submit

GEOMETRY = KVGeometry(token_bytes=16, sliding_token_bytes=8, window=4, max_rows=3)
PROMPT = list(range(100, 110))


def place(row: int = 0, capacity: int = 16, block_id: int = 1, block_rows: int = 4) -> Place:
    return Place(block_id, row, block_rows, capacity)


def submit(request_id: int = 1, prompt: list[int] = PROMPT, max_tokens: int = 9) -> Submit:
    return Submit(request_id, prompt, max_tokens, stop_ids=[])


def prefilled(prompt: list[int] = PROMPT, salt: str = "") -> FakeKV:
    """Row 1 at place 0, its whole prompt computed, with a window 1 in its middle."""
    kv = FakeKV(GEOMETRY)
    kv.apply(Open(replace(submit(prompt=prompt), cache_salt=salt), place()))
    kv.compute(Prefill(1, 0, len(prompt), cuts=(Cut(1, 6),)))
    return kv


def stored(salt: str = "") -> FakeKV:
    """Spans 1 (0:6) and 2 (6:10), windows 1 at 6 and 2 at 10, and no row."""
    kv = prefilled(salt=salt)
    kv.apply(Close(1, kept=(Kept(1, 0, 6), Kept(2, 6, 10)), window=Cut(2, 10)))
    return kv


SOURCES = (Stored(1, 0, 6), Stored(2, 6, 10))


def longer(request_id: int = 2, prompt: list[int] = PROMPT) -> Submit:
    return submit(request_id, [*prompt, 7, 8])


def test_a_prefix_goes_from_a_row_to_the_cache_and_back() -> None:
    kv = stored()
    assert kv.cache_bytes == 10 * 16 + 2 * 3 * 8
    kv.apply(Open(longer(), place(), SOURCES, window_id=2))
    assert kv.computed_tokens(2) == 10
    assert kv.cache_bytes == 2 * 3 * 8
    assert kv.compute(Prefill(2, 10, 12)) == (2,)
    kv.apply(Close(2))
    kv.apply(FreeWindow(1))
    kv.apply(FreeWindow(2))
    assert kv.cache_bytes == kv.place_tokens == 0
    assert kv.kv_bytes == GEOMETRY.ring_bytes == 3 * 4 * 8


def test_a_prefix_is_copied_from_a_running_row() -> None:
    kv = prefilled()
    kv.apply(Open(longer(), place(1), (Running(1, 0, 6),), window_id=1))
    kv.compute(Prefill(2, 6, 12))
    assert (kv.computed_tokens(1), kv.computed_tokens(2)) == (10, 12)


def test_decoded_ids_belong_to_the_prefix() -> None:
    kv = prefilled()
    for token_id in (7, 8):
        kv.feed(1, token_id)
    kv.apply(Close(1, kept=(Kept(1, 0, 11),), window=Cut(2, 11)))
    kv.apply(Open(longer(2), place(), (Stored(1, 0, 11),), window_id=2))
    assert kv.computed_tokens(2) == 11


def test_a_split_span_serves_both_ways() -> None:
    kv = stored()
    kv.apply(Split(1, upper_id=3, tokens=4))
    sources = (Stored(3, 0, 4), Stored(1, 4, 6))
    kv.apply(Open(longer(), place(), sources, window_id=1))
    assert kv.computed_tokens(2) == 6


def test_forks_hold_what_the_leader_holds_and_sample_too() -> None:
    kv = FakeKV(GEOMETRY)
    for request_id in (1, 2, 3):
        kv.apply(Open(submit(request_id), place(request_id)))
    assert kv.compute(Prefill(1, 0, 8)) == ()
    assert kv.compute(Prefill(1, 8, 10, forks=(2, 3))) == (1, 2, 3)
    kv.apply(Close(2, kept=(Kept(1, 0, 10),), window=Cut(1, 10)))
    kv.apply(Open(longer(4), place(2), (Stored(1, 0, 10),), window_id=1))


def test_a_request_without_tokens_computes_its_prompt_and_samples_nothing() -> None:
    kv = FakeKV(GEOMETRY)
    kv.apply(Open(submit(max_tokens=0), place()))
    assert kv.compute(Prefill(1, 0, 10)) == ()
    with pytest.raises(AssertionError, match="no token to feed"):
        kv.feed(1, 7)


def test_a_row_that_moves_keeps_its_kv_and_leaves_its_place() -> None:
    kv = prefilled()
    kv.apply(Move(1, place(0, capacity=20, block_id=2, block_rows=1)))
    assert kv.place_tokens == 20
    kv.apply(Open(submit(2), place(0)))
    kv.apply(Close(1, kept=(Kept(1, 0, 10),), window=Cut(2, 10)))
    kv.apply(Open(longer(3), place(1), (Stored(1, 0, 10),), window_id=2))


def test_a_block_counts_whole_and_once() -> None:
    kv = prefilled()
    kv.apply(Open(submit(2), place(3)))
    assert kv.place_tokens == 4 * 16
    assert kv.kv_bytes == 4 * 16 * 16 + GEOMETRY.ring_bytes + 3 * 8


def exported(first: int = 0) -> Import:
    """What one engine exported, for another."""
    donor = prefilled()
    donor.apply(Close(1, kept=(Kept(5, 0, 10),), window=Cut(6, 10)))
    return Import(donor.export(Stored(5, 0, 10), 6), 10, 3, first, stop=10, span_id=1, window_id=2)


def test_what_was_exported_fits_in_another_engine() -> None:
    kv = FakeKV(GEOMETRY)
    assert len(exported().payload) == 10 * 16 + 3 * 8
    kv.apply(exported())
    kv.apply(Open(longer(), place(), (Stored(1, 0, 10),), window_id=2))
    assert kv.computed_tokens(2) == 10


def test_part_of_a_payload_may_be_imported() -> None:
    kv = prefilled()
    kv.apply(exported(first=6))
    kv.apply(Open(longer(), place(1), (Running(1, 0, 6), Stored(1, 6, 10)), window_id=2))
    assert kv.computed_tokens(2) == 10


def test_a_span_may_be_exported_without_a_window() -> None:
    kv = FakeKV(GEOMETRY)
    kv.apply(Import(stored().export(Stored(1, 0, 6), None), 6, 0, 0, 6, span_id=9))
    assert kv.cache_bytes == 6 * 16
    with pytest.raises(AssertionError, match="behind the span"):
        stored().export(Stored(1, 0, 6), 2)


def test_what_a_row_has_computed_may_be_exported() -> None:
    row = prefilled()
    payload = row.export(Running(1, 4, 10), None)
    row.apply(Close(1, kept=(Kept(5, 4, 10),)))
    assert row.export(Stored(5, 4, 10), None) == payload
    with pytest.raises(AssertionError, match="is not computed"):
        prefilled().export(Running(1, 4, 11), None)


@pytest.mark.parametrize("offset", [0, 8, 159])
def test_a_damaged_payload_is_noticed(offset: int) -> None:
    payload = bytearray(exported().payload)
    payload[offset] ^= 1
    with pytest.raises(AssertionError, match="damaged"):
        FakeKV(GEOMETRY).apply(dataclasses.replace(exported(), payload=bytes(payload)))


def test_a_damaged_window_is_noticed_where_it_is_used() -> None:
    kv = FakeKV(GEOMETRY)
    payload = exported().payload[:-1] + b"x"
    kv.apply(dataclasses.replace(exported(), payload=payload))
    with pytest.raises(AssertionError, match="the window of request 2 is not its own at 2"):
        kv.apply(Open(longer(), place(), (Stored(1, 0, 10),), window_id=2))


@pytest.mark.parametrize(
    ("prompt", "salt"),
    [
        pytest.param([99, *PROMPT[1:]], "", id="another beginning"),
        pytest.param([*PROMPT[:9], 99], "", id="another end"),
        pytest.param(PROMPT[1:], "", id="shifted"),
        pytest.param(PROMPT, "lab", id="another tenant"),
    ],
)
def test_kv_of_another_prefix_is_noticed(prompt: list[int], salt: str) -> None:
    foreign = replace(longer(prompt=[*prompt, 5]), cache_salt=salt)
    with pytest.raises(AssertionError, match="the KV of request 2"):
        stored().apply(Open(foreign, place(), SOURCES, window_id=2))
    with pytest.raises(AssertionError, match="the KV of request 2"):
        prefilled().apply(Open(foreign, place(1), (Running(1, 0, 10),), window_id=1))


def test_a_window_of_another_position_or_prefix_is_noticed() -> None:
    with pytest.raises(AssertionError, match="the window of request 2"):
        stored().apply(Open(longer(), place(), SOURCES, window_id=1))
    for cut, message in ((Cut(3, 2), "2 positions"), (Cut(3, 11), "not its own")):
        kv = stored()
        kv.apply(Open(submit(4, [1, *PROMPT]), place(2)))
        kv.compute(Prefill(4, 0, 11, cuts=(cut,)))
        with pytest.raises(AssertionError, match=f"the window of request 2.*{message}"):
            kv.apply(Open(longer(), place(), SOURCES, window_id=3))


def close(*kept: Kept, at: int | None = None) -> Close:
    return Close(1, kept, None if at is None else Cut(9, at))


def reopened() -> FakeKV:
    """Row 2 has restored 10 positions and computed nothing."""
    kv = stored()
    kv.apply(Open(longer(), place(), SOURCES, window_id=2))
    return kv


WRONG_EDITS: list[tuple[str, Callable[[], FakeKV], Edit]] = [
    ("second row", prefilled, Open(submit(1), place(1))),
    ("place taken", prefilled, Open(submit(2), place(0))),
    ("beyond the block", prefilled, Open(submit(2), place(4))),
    ("block of other rows", prefilled, Open(submit(2), place(1, block_rows=8))),
    ("block of other capacity", prefilled, Open(submit(2), place(1, capacity=32))),
    ("window alone", stored, Open(longer(), place(), window_id=1)),
    ("sources alone", stored, Open(longer(), place(), SOURCES)),
    ("gap", stored, Open(longer(), place(), SOURCES[1:], window_id=2)),
    ("nothing to compute", stored, Open(submit(2), place(), SOURCES, window_id=2)),
    ("no room", stored, Open(longer(), place(capacity=9), SOURCES, window_id=2)),
    ("part of a span", stored, Open(longer(), place(), (Stored(1, 0, 5),), window_id=1)),
    ("unknown span", stored, Open(longer(), place(), (Stored(8, 0, 6),), window_id=1)),
    ("unknown window", stored, Open(longer(), place(), SOURCES, window_id=8)),
    ("no such row", stored, Open(longer(), place(), (Running(1, 0, 6),), window_id=1)),
    ("not computed", prefilled, Open(longer(), place(1), (Running(1, 0, 11),), window_id=1)),
    ("move to the same size", prefilled, Move(1, place(1))),
    ("move of nobody", prefilled, Move(2, place(0, capacity=20, block_id=2))),
    ("close of nobody", prefilled, Close(2)),
    ("kept beyond", prefilled, close(Kept(1, 4, 11))),
    ("kept nothing", prefilled, close(Kept(1, 4, 4))),
    ("kept twice", prefilled, close(Kept(1, 0, 6), Kept(2, 5, 8))),
    ("kept under one id", prefilled, close(Kept(1, 0, 6), Kept(1, 6, 8))),
    ("window gone by", prefilled, close(at=8)),
    ("window to come", prefilled, close(at=11)),
    ("window that was not restored", reopened, Close(2, window=Cut(9, 9))),
    ("window id in use", prefilled, Close(1, window=Cut(1, 10))),
    ("split at the border", stored, Split(1, upper_id=3, tokens=6)),
    ("split to nothing", stored, Split(1, upper_id=3, tokens=0)),
    ("split to an id in use", stored, Split(1, upper_id=2, tokens=3)),
    ("split of nothing", stored, Split(8, upper_id=3, tokens=3)),
    ("unknown span freed", stored, FreeSpan(3)),
    ("unknown window freed", stored, FreeWindow(3)),
    ("import over a span", stored, dataclasses.replace(exported(), window_id=None)),
    ("import over a window", stored, dataclasses.replace(exported(), span_id=3)),
    ("import of nothing", prefilled, dataclasses.replace(exported(), first=10)),
    ("import of too much", prefilled, dataclasses.replace(exported(), stop=11)),
    ("payload cut short", prefilled, dataclasses.replace(exported(), payload_tokens=9, stop=9)),
    ("window beyond the ring", prefilled, Import(bytes(48), 1, 4, 0, 1, 3, window_id=4)),
    ("import without its window", prefilled, Import(bytes(16), 1, 0, 0, 1, 3, window_id=4)),
]


@pytest.mark.parametrize(
    ("make", "edit"), [case[1:] for case in WRONG_EDITS], ids=[case[0] for case in WRONG_EDITS]
)
def test_an_edit_against_the_contract_is_a_defect(make: Callable[[], FakeKV], edit: Edit) -> None:
    kv = make()
    with pytest.raises(AssertionError):
        kv.apply(edit)


@pytest.mark.parametrize(
    "prefill",
    [
        Prefill(1, 0, 11),
        Prefill(1, 0, 0),
        Prefill(1, 1, 2),
        Prefill(2, 0, 2),
        Prefill(1, 0, 9, forks=(3,)),
        Prefill(1, 0, 10, forks=(3,)),
        Prefill(1, 0, 10, forks=(4,)),
        Prefill(1, 0, 10, forks=(5,)),
        Prefill(1, 0, 9, cuts=(Cut(1, 0),)),
        Prefill(1, 0, 9, cuts=(Cut(1, 10),)),
        Prefill(1, 0, 9, cuts=(Cut(1, 5), Cut(2, 5))),
        Prefill(1, 0, 9, cuts=(Cut(1, 5), Cut(1, 6))),
    ],
    ids=[
        "beyond the prompt",
        "nothing",
        "gap",
        "no row",
        "forks too early",
        "fork that has begun",
        "fork of another prompt",
        "fork of another tenant",
        "cut before the chunk",
        "cut behind the chunk",
        "cuts that do not rise",
        "cuts of one id",
    ],
)
def test_a_prefill_against_the_contract_is_a_defect(prefill: Prefill) -> None:
    kv = FakeKV(dataclasses.replace(GEOMETRY, max_rows=4))
    kv.apply(Open(submit(1), place()))
    kv.apply(Open(submit(3), place(1)))
    kv.compute(Prefill(3, 0, 2))
    kv.apply(Open(submit(4, PROMPT[1:]), place(2)))
    kv.apply(Open(replace(submit(5), cache_salt="lab"), place(3)))
    with pytest.raises(AssertionError):
        kv.compute(prefill)


def test_a_row_neither_outgrows_its_place_nor_decodes_too_early() -> None:
    kv = FakeKV(GEOMETRY)
    kv.apply(Open(submit(), place(capacity=11)))
    with pytest.raises(AssertionError, match="before its prompt"):
        kv.feed(1, 7)
    kv.compute(Prefill(1, 0, 10))
    kv.feed(1, 7)
    with pytest.raises(AssertionError, match="too small"):
        kv.feed(1, 8)


def test_there_are_no_more_rows_than_the_geometry_says() -> None:
    kv = FakeKV(GEOMETRY)
    for request_id in range(GEOMETRY.max_rows):
        kv.apply(Open(submit(request_id), place(request_id)))
    assert kv.request_ids == {0, 1, 2}
    with pytest.raises(AssertionError):
        kv.apply(Open(submit(3), place(3)))
