"""What is cached of a prompt: what the engine says, and how long the gateway waits for that."""

import asyncio

import pytest

from tests.schedulers import Engine, make_scheduler
from tests.unit.test_scheduler_disk import restarted, saved_engine, submit, text
from verger.gateway.hits import LOOK_UP_WAIT_S, MAX_LOOK_UPS, LookUps
from verger.messages import Found, LookUp, Submit

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def found(engine: Engine, prompt: list[int], salt: str = "") -> Found:
    engine.scheduler.look_up(LookUp(9, prompt, salt))
    assert not engine.scheduler.is_idle, "there is something to say"
    (frame,) = engine.scheduler.take_frames()
    assert isinstance(frame, Found)
    assert frame.lookup_id == 9
    return frame


def test_a_look_up_says_what_a_request_would_find_and_changes_nothing() -> None:
    engine = Engine(make_scheduler(alone=512, beside=512, context_tokens=20_000))
    engine.run(submit(1, text(2_000)))
    longer = text(2_000) + text(50, seed=1)
    told = found(engine, longer)
    engine.run(submit(2, longer))

    assert told == Found(9, engine.finished(2).cached_tokens, told.memory_tokens)
    assert told.memory_tokens >= 1_999
    assert found(engine, text(2_000)).memory_tokens < 2_000, "one is left to sample from"


def test_a_look_up_is_answered_for_its_tenant_only() -> None:
    engine = Engine(make_scheduler(alone=512, beside=512, context_tokens=20_000))
    engine.run(Submit(1, text(2_000), 4, [1], cache_salt="a"))

    assert found(engine, text(2_000), "a").memory_tokens > 1_000
    assert found(engine, text(2_000), "b") == Found(9, 0, 0)


def test_what_is_on_disk_only_is_told_apart() -> None:
    told = found(restarted(saved_engine()), text(2_000))
    assert told.memory_tokens == 0
    assert told.disk_tokens > 1_000


def test_without_a_cache_nothing_is_found() -> None:
    engine = Engine(make_scheduler(alone=512, beside=512, context_tokens=20_000, caches=False))
    engine.run(submit(1, text(2_000)))
    assert found(engine, text(2_000)) == Found(9, 0, 0)


class Sent(list[LookUp]):
    """What the engine was asked."""


async def test_an_answer_in_time_is_waited_for() -> None:
    sent = Sent()
    look_ups = LookUps(sent.append)
    hits = look_ups.ask(submit(0, [1, 2, 3]))
    waiting = asyncio.create_task(hits.wait(60))
    await asyncio.sleep(0)
    assert not waiting.done()
    look_ups.tell(Found(sent[0].lookup_id, 2, 3))
    await waiting

    assert (hits.memory_tokens, hits.disk_tokens) == (2, 3)


async def test_without_an_answer_nothing_counts_as_cached_until_it_comes() -> None:
    assert LOOK_UP_WAIT_S == 0.04
    sent = Sent()
    look_ups = LookUps(sent.append)
    hits = look_ups.ask(submit(0, [1, 2, 3]))
    await hits.wait(0)
    assert hits.memory_tokens == 0
    look_ups.tell(Found(sent[0].lookup_id, 2, 2))
    assert hits.memory_tokens == 2


async def test_an_engine_that_owes_too_many_answers_is_not_asked() -> None:
    sent = Sent()
    look_ups = LookUps(sent.append)
    asked = [look_ups.ask(submit(0, [1])) for _ in range(MAX_LOOK_UPS + 1)]
    assert len(sent) == MAX_LOOK_UPS
    await asked[-1].wait(0)
    look_ups.tell(Found(sent[0].lookup_id, 1, 1))
    look_ups.ask(submit(0, [1]))
    assert len(sent) == MAX_LOOK_UPS + 1


async def test_when_the_engine_dies_nobody_waits_and_nothing_is_cached() -> None:
    sent = Sent()
    look_ups = LookUps(sent.append)
    hits = look_ups.ask(submit(0, [1]))
    look_ups.forget()
    await hits.wait(60)
    look_ups.tell(Found(sent[0].lookup_id, 1, 1))
    assert hits.memory_tokens == 0
