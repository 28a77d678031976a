"""One request's files: asked for as the disk takes them, and counted off as they come."""

from verger.engine.readback import Readback
from verger.engine.sequence import Sequence
from verger.messages import Submit

NAMES = ("a", "b", "c")


def readback() -> Readback:
    submit = Submit(1, [1, 2, 3], 1, [])
    return Readback(Sequence(submit, submit, 1, 1, 0.0), NAMES, reserved_bytes=100)


def test_no_more_is_asked_for_than_the_disk_takes() -> None:
    back, free = readback(), ["b", "a"]

    def read(name: str) -> bool:
        return bool(free) and free.pop() == name

    back.ask(read)
    assert not back.take("c", 10), "not asked for yet"
    assert back.take("a", 10)
    assert not back.take("a", 10), "it came already"
    free.append("c")
    back.ask(read)
    assert back.take("b", 10)
    assert back.take("c", 10)


def test_it_is_done_when_every_file_has_come_or_was_lost() -> None:
    back = readback()
    assert back.last_name == "c"
    back.ask(lambda name: True)
    for name, nbytes in (("a", 60), ("b", 0)):
        assert back.take(name, nbytes)
        assert not back.is_done
    assert back.reserved_bytes == 40
    assert back.take("c", 60)
    assert back.is_done
    assert back.reserved_bytes == 0
