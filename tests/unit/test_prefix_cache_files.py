"""What of the prefix cache goes to disk and comes back, one behaviour at a time."""

import math

import pytest

from tests.prefix_device import GEOMETRY, PLACE
from tests.prefix_disk import LATER_S, Disk, ids, recompute_s
from verger.engine.prefix_cache import Hit, Kind, PrefixCache
from verger.engine.prefix_files import MAX_SAVE_DOUBLINGS, SAVE_IDLE_S
from verger.engine.steps import FreeSpan, Import
from verger.messages import Submit

ALL_BYTES = 1 << 50
PROMPT = ids(0, 100)


@pytest.mark.parametrize(("idle_s", "saved"), [(SAVE_IDLE_S - 1, 0), (SAVE_IDLE_S, 1)])
def test_what_is_idle_for_a_while_is_saved(idle_s: float, saved: int) -> None:
    disk = Disk()
    disk.run(PROMPT, now_s=5.0)
    assert len(disk.save(5.0 + idle_s)) == saved


def test_what_was_reused_is_saved_at_once_and_once() -> None:
    disk = Disk()
    disk.run(PROMPT)
    disk.run(PROMPT + ids(200, 240))
    (header,) = disk.save(0.0)
    assert (header.start, header.tokens, header.window_tokens) == (0, PROMPT, GEOMETRY.window - 1)
    assert header.payload_bytes == 100 * GEOMETRY.token_bytes + GEOMETRY.window_bytes(100)
    assert disk.save(0.0) == []
    assert [header.start for header in disk.save()] == [100]
    assert (disk.cache.files.count, disk.cache.files.file_bytes) == (2, disk.cache.bytes)


def test_no_more_is_saved_than_was_asked_for_and_parents_come_first() -> None:
    disk = Disk()
    disk.run(PROMPT, 40, 70)
    assert [header.start for header in disk.save(limit=2)] == [0, 40]
    assert [header.start for header in disk.save(limit=2)] == [70]


def test_what_a_row_reuses_is_saved_out_of_the_row_and_so_is_what_is_behind_it() -> None:
    disk = Disk()
    disk.run(PROMPT, 50)
    disk.cache.open(Submit(9, ids(0, 50) + [7], 1, []), PLACE, 50, 0.0)
    disk.device.compute(9, [7])
    assert [header.start for header in disk.save()] == [0, 50]
    disk.cache.close(9, [], Kind.END, 0.0)
    found = disk.restarted().cache.match("", PROMPT, 100)
    assert found.file_tokens == 100


def test_what_a_row_computes_is_not_saved_before_it_was_reused() -> None:
    disk = Disk()
    disk.cache.open(Submit(9, PROMPT, 1, []), PLACE, 0, 0.0)
    disk.device.compute(9, PROMPT)
    disk.device.cut(9, 99, 50)
    disk.cache.extend(9, PROMPT, 50, 99, Kind.GRID, 0.0)
    assert disk.save() == []


def test_a_failed_write_is_tried_again_ever_later() -> None:
    disk = Disk()
    disk.run(PROMPT)
    for failures in range(MAX_SAVE_DOUBLINGS + 2):
        wait_s = SAVE_IDLE_S * 2 ** min(failures, MAX_SAVE_DOUBLINGS)
        assert disk.cache.files.to_save(wait_s - 1, 1) == []
        (order,) = disk.cache.files.to_save(wait_s, 1)
        disk.cache.files.saved(order.header.name, ok=False)
        disk.check()
        assert disk.cache.files.count == 0
    assert disk.cache.files.over(0) == [], "what was not written needs no removal"


def test_what_was_evicted_is_found_on_disk_and_read_back() -> None:
    disk = Disk()
    disk.run(PROMPT, 40)
    first, second = (header.name for header in disk.save())
    disk.evict_all()
    hit = disk.cache.match("", [*PROMPT, 7], 100)
    assert hit == Hit(0, 100, (first, second))
    disk.read(first, second)
    assert disk.cache.match("", [*PROMPT, 7], 100) == Hit(100, 100)
    disk.run([*PROMPT, 7])
    assert disk.device.opened[-1].cached_tokens == 100


def test_a_file_being_written_will_be_readable_and_is_not_yet() -> None:
    disk = Disk()
    disk.run(PROMPT)
    (order,) = disk.cache.files.to_save(LATER_S, 1)
    disk.evict_all()
    assert disk.cache.match("", PROMPT, 100) == Hit(0, 100, (order.header.name,))
    disk.cache.files.read(order.header.name, bytes(order.header.payload_bytes), 0.0)
    disk.cache.files.read("unknown", b"", 0.0)
    assert disk.cache.bytes == 0
    disk.cache.files.saved(order.header.name, ok=True)
    assert disk.cache.match("", PROMPT, 100).file_tokens == 100


def test_a_window_alone_is_read_back_with_its_span_for_a_moment() -> None:
    disk = Disk()
    disk.run(PROMPT, 40, end=Kind.OPEN)
    name = disk.save()[0].name
    assert disk.cache.evict(1, 0.0) == GEOMETRY.window_bytes(40)
    assert disk.cache.match("", PROMPT, 99) == Hit(0, 40, (name,))
    disk.read(name)
    assert [type(edit) for edit in disk.device.edits[-2:]] == [Import, FreeSpan]
    assert disk.cache.match("", PROMPT, 99) == Hit(40, 40)


def test_a_file_read_without_what_is_before_it_does_nothing() -> None:
    disk = Disk()
    disk.run(PROMPT, 40)
    first, second = (header.name for header in disk.save())
    disk.evict_all()
    disk.read(second)
    assert disk.cache.bytes == 0
    disk.read(first)
    assert disk.cache.bytes > 0


def test_what_was_read_but_never_continued_can_be_evicted() -> None:
    """The span before a checkpoint is in memory, the file with the checkpoint is not read."""
    disk = Disk()
    disk.run(PROMPT, 40, 70)
    first, second, _ = (header.name for header in disk.save())
    disk.evict_all()
    disk.read(first)
    disk.cache.evict(1, LATER_S)
    disk.read(first, second)
    assert disk.cache.price(disk.cache.bytes, LATER_S) < math.inf
    disk.evict_all()


def test_what_was_read_is_counted_once_among_the_victims() -> None:
    disk = Disk()
    disk.run(PROMPT, 40, end=Kind.OPEN)
    assert disk.cache.evict(1, 0.0) == GEOMETRY.window_bytes(40)
    headers = disk.save()
    assert [header.window_tokens > 0 for header in headers] == [False, True]
    disk.evict_all()
    for header in headers:
        disk.read(header.name)
        held = disk.cache.bytes
        assert disk.cache.price(held, LATER_S) < math.inf
        assert disk.cache.price(held + 1, LATER_S) == math.inf


def test_a_file_of_which_a_part_is_known_gives_the_rest() -> None:
    disk = Disk()
    disk.run(PROMPT)
    (header,) = disk.save()
    disk.run(ids(0, 60) + ids(200, 240))
    assert disk.cache.evict(1, LATER_S) > 0, "saved, so cheaper to give up than the other"
    hit = disk.cache.match("", PROMPT, 100)
    assert hit == Hit(0, 100, (header.name,))
    disk.read(header.name)
    imported = [edit for edit in disk.device.edits if isinstance(edit, Import)]
    assert [(edit.first, edit.stop) for edit in imported] == [(60, 100)]
    assert disk.cache.match("", PROMPT, 100) == Hit(100, 100)


def test_a_lost_file_takes_with_it_what_is_behind_it_and_only_on_disk() -> None:
    disk = Disk()
    disk.run(PROMPT, 40, 70)
    first, second, third = (header.name for header in disk.save())
    disk.evict_all()
    disk.cache.files.lost(second)
    disk.check()
    assert disk.cache.match("", PROMPT, 100) == Hit(0, 40, (first,))
    assert disk.cache.files.over(ALL_BYTES) == [third], "nobody can use it any more"


def test_a_lost_file_of_what_is_in_memory_is_written_again() -> None:
    disk = Disk()
    disk.run(PROMPT)
    (header,) = disk.save()
    disk.cache.files.lost(header.name)
    assert disk.cache.match("", PROMPT, 100).tokens == 100
    assert disk.save() == [header]


@pytest.mark.parametrize(("end", "is_saved"), [(Kind.OPEN, True), (Kind.END, False)])
def test_what_is_likely_to_return_is_written_before_it_is_evicted(
    end: Kind, is_saved: bool
) -> None:
    disk = Disk(saves_first=True)
    disk.run(PROMPT, 40, end=end)
    disk.evict_all()
    for name in disk.files:
        disk.cache.files.saved(name, ok=True)
    # The window at 40 went before its span was written.
    assert disk.cache.match("", PROMPT, 100).file_tokens == (100 if is_saved else 0)
    disk.read(*disk.cache.match("", PROMPT, 100).files)
    assert disk.cache.match("", PROMPT, 100).tokens == (100 if is_saved else 0)


def test_what_follows_a_row_is_written_before_it_is_evicted_and_the_row_too() -> None:
    disk = Disk(saves_first=True)
    disk.run(PROMPT, 40, end=Kind.OPEN)
    disk.cache.open(Submit(9, [*ids(0, 40), 7], 1, []), PLACE, 40, 0.0)
    disk.device.compute(9, [7])
    disk.evict_all()
    assert sorted(header.start for header, _ in disk.files.values()) == [0, 40]


def test_what_was_read_for_a_file_that_is_lost_can_be_evicted() -> None:
    """Its window went while something was behind it; then that went too."""
    disk = Disk()
    disk.run(PROMPT, 40, 70, end=Kind.OPEN)
    assert disk.cache.evict(1, 0.0) == GEOMETRY.window_bytes(70)
    first, second, third = disk.save()
    assert (first.window_tokens > 0, second.window_tokens) == (True, 0)
    disk.evict_all()
    disk.read(first.name, second.name)
    assert disk.cache.evict(1, LATER_S) == GEOMETRY.window_bytes(40)
    disk.cache.files.lost(third.name)
    disk.check()
    disk.evict_all()


def test_a_refused_write_does_not_stop_the_eviction() -> None:
    disk = Disk()
    cache = PrefixCache(GEOMETRY, recompute_s, disk.device.apply, save=lambda order: False)
    disk.cache = cache
    disk.run(PROMPT, end=Kind.OPEN)
    disk.evict_all()
    assert (cache.nodes, cache.files.count) == (0, 0)
