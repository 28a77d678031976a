"""A conversation keeps the date that it began with."""

from msgspec.structs import replace

from verger.formats.conversation import Conversation, Message, Role, Tool
from verger.formats.dates import PinnedDates

MONDAY, TUESDAY = "2026-11-23", "2026-11-24"
FIRST = Conversation(
    (Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hi")), (Tool("f", "", {"x": 10**30}),)
)


def test_later_turns_keep_the_date_of_the_first() -> None:
    dates = PinnedDates()
    assert dates.date_for("office", FIRST, MONDAY) == MONDAY
    later = (
        Message(Role.ASSISTANT, "Hello"),
        Message(Role.SYSTEM, "Now!"),
        Message(Role.USER, "?"),
    )
    second = replace(FIRST, messages=FIRST.messages + later)
    assert dates.date_for("office", second, TUESDAY) == MONDAY


def test_whatever_stands_before_the_second_turn_tells_conversations_apart() -> None:
    dates = PinnedDates()
    dates.date_for("office", FIRST, MONDAY)
    others = (
        replace(FIRST, messages=FIRST.messages[1:]),
        replace(FIRST, messages=(FIRST.messages[0], Message(Role.USER, "Ho"))),
        replace(FIRST, messages=FIRST.messages[:1]),
        replace(FIRST, tools=()),
    )
    for other in others:
        assert dates.date_for("office", other, TUESDAY) == TUESDAY
    assert dates.date_for("lab", FIRST, TUESDAY) == TUESDAY


def test_the_least_recently_used_date_is_forgotten() -> None:
    dates = PinnedDates(limit=2)
    dates.date_for("a", FIRST, MONDAY)
    dates.date_for("b", FIRST, MONDAY)
    assert dates.date_for("a", FIRST, TUESDAY) == MONDAY
    dates.date_for("c", FIRST, TUESDAY)
    assert dates.date_for("a", FIRST, TUESDAY) == MONDAY
    assert dates.date_for("b", FIRST, TUESDAY) == TUESDAY
