"""What an earlier run left of the prefix cache on disk, and what goes when the disk is full."""

import pytest
from msgspec.structs import replace

from tests.prefix_disk import Disk, ids
from verger.engine.prefix_cache import Hit

PROMPT = ids(0, 100)


def test_after_a_restart_everything_saved_is_found() -> None:
    disk = Disk()
    disk.run(PROMPT, 40)
    disk.run(ids(0, 60) + ids(200, 260))
    disk.run(PROMPT, salt="red")
    disk.save()
    after = disk.restarted()
    assert after.files.keys() == disk.files.keys()
    for prompt in (PROMPT, ids(0, 60) + ids(200, 260)):
        hit = after.cache.match("", prompt, len(prompt))
        assert hit.file_tokens == len(prompt)
        after.read(*hit.files)
        after.run([*prompt, 7])
        assert after.device.opened[-1].cached_tokens == len(prompt)
    assert after.cache.match("blue", PROMPT, 100) == Hit(0, 0)


def test_a_file_that_begins_inside_another_is_found_after_a_restart() -> None:
    """The first was saved whole, then split by the second, which begins in its middle."""
    disk = Disk()
    disk.run(PROMPT)
    disk.save()
    disk.run(ids(0, 60) + ids(200, 240))
    (second,) = disk.save()
    assert second.start == 60
    after = disk.restarted()
    assert len(after.files) == 2
    assert after.cache.match("", ids(0, 60) + ids(200, 240), 100).file_tokens == 100


def test_two_files_that_begin_at_the_same_place_inside_another_are_found() -> None:
    disk = Disk()
    disk.run(PROMPT)
    disk.save()
    for first in (200, 300):
        disk.run(ids(0, 60) + ids(first, first + 40))
    assert [header.start for header in disk.save()] == [60, 60]
    assert disk.restarted().files.keys() == disk.files.keys()


def test_files_of_another_model_tenant_or_content_fit_nowhere() -> None:
    disk = Disk()
    disk.run(PROMPT, 40)
    disk.save()
    assert disk.restarted("another").files == {}
    (first, payload), (second, _) = disk.files.values()
    for changed in (
        replace(first, salt="red"),
        replace(first, tokens=[7, *first.tokens[1:]]),
        replace(first, name=second.name),
        replace(first, tokens=[]),
        replace(first, kv_bytes=first.kv_bytes + 1),
        replace(first, window_tokens=1),
        replace(second, start=second.start + 1),
    ):
        fresh = Disk()
        assert fresh.cache.files.adopt([changed]) == [changed.name]
        fresh.check()
        assert fresh.cache.nodes == 0


def test_a_file_without_what_is_before_it_fits_nowhere() -> None:
    disk = Disk()
    disk.run(PROMPT, 40, 70)
    first, second, third = (header.name for header in disk.save())
    del disk.files[second]
    assert list(disk.restarted().files) == [first]
    assert third in disk.files


@pytest.mark.parametrize("room", [0, 1])
def test_over_its_limit_the_disk_loses_the_ends_that_were_not_used_for_longest(room: int) -> None:
    disk = Disk()
    disk.run(ids(0, 60), now_s=1.0)
    disk.run(ids(0, 60) + ids(100, 140), now_s=2.0)
    disk.run(ids(0, 60) + ids(200, 240), now_s=3.0)
    trunk, *ends = disk.save(100.0)
    oldest = next(header.name for header in ends if header.tokens[0] == 100)
    total = disk.cache.files.file_bytes
    assert disk.cache.files.over(total) == []
    removed = disk.cache.files.over(total - 1)
    assert removed == [oldest]
    disk.check()
    assert trunk.name in disk.cache.files.over(room)
    disk.check()
    assert disk.cache.files.count == 0


def test_what_a_waiting_request_will_read_is_removed_last() -> None:
    disk = Disk()
    disk.run(ids(0, 60), now_s=1.0)
    disk.run(ids(100, 160), now_s=2.0)
    names = {header.tokens[0]: header.name for header in disk.save(100.0)}
    disk.evict_all()
    disk.cache.want(77, "", ids(0, 61))
    assert disk.cache.files.over(disk.cache.files.file_bytes - 1) == [names[100]]
    disk.check()
