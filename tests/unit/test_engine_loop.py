"""The loop, run to its end in this thread: what it is told stands in the socket beforehand."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import pytest

from tests.fakes import ECHO_KV, EchoRunner
from tests.schedulers import FixedPacer, PlainScheduler
from verger.engine.loop import BLOCKED_S, HEARTBEAT_S, Loop
from verger.engine.steps import Plan, Sampled, Step, Work
from verger.engine.transport import Connection, ConnectionClosed, ProtocolError
from verger.messages import (
    Cancel,
    Drain,
    Finished,
    FinishReason,
    FromEngine,
    Heartbeat,
    Hello,
    Progress,
    Rejected,
    RejectReason,
    RowTokens,
    Sampling,
    Stats,
    Submit,
    ToEngine,
    Tokens,
)

CONTEXT_TOKENS = 1000


class Gateway:
    """The other end of the engine's socket."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            payload = msgspec.msgpack.encode(message)
            self._stream.sendall(len(payload).to_bytes(4, "little") + payload)

    def close(self) -> None:
        self._stream.close()

    def read(self) -> list[FromEngine]:
        """Everything the engine has said by now."""
        received, frames = b"", []
        self._stream.setblocking(False)
        try:
            while chunk := self._stream.recv(1 << 20):
                received += chunk
        except BlockingIOError:
            pass
        while received:
            stop = 4 + int.from_bytes(received[:4], "little")
            frames.append(msgspec.msgpack.decode(received[4:stop], type=FromEngine))
            received = received[stop:]
        return frames


class WatchedRunner(EchoRunner):
    """Notes the order of launches and collects; the hooks get the number of the step."""

    def __init__(self) -> None:
        super().__init__(CONTEXT_TOKENS)
        self.calls: list[str] = []
        self.on_launch: Callable[[int], None] = lambda step: None
        self.on_collect: Callable[[int], None] = lambda step: None

    def launch(self, plan: Plan) -> None:
        self.calls.append("launch")
        self.on_launch(self.calls.count("launch"))
        super().launch(plan)

    def collect(self) -> list[Sampled]:
        self.calls.append("collect")
        self.on_collect(self.calls.count("collect"))
        return super().collect()


class Clock:
    """A clock that moves a little whenever it is read."""

    def __init__(self, tick_s: float) -> None:
        self.now_s = 0.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


class NotingPacer(FixedPacer):
    """Notes how long each step took."""

    def __init__(self) -> None:
        super().__init__(alone=4)
        self.steps_s: list[float] = []

    def observe(self, work: Work, seconds: float, prefill_tokens: int) -> None:
        self.steps_s.append(seconds)


class BlockedScheduler(PlainScheduler):
    """Has nothing to compute for the first `blocked` plans, though somebody waits."""

    blocked = 0

    def plan(self, now_s: float = 0.0) -> Step:
        if self.blocked > 0:
            self.blocked -= 1
            return Step((), Plan())
        return super().plan(now_s)


class NotingConnection(Connection):
    """Notes how long it was told to wait for messages."""

    def __init__(self, stream: socket.socket) -> None:
        super().__init__(stream)
        self.waits_s: list[float] = []

    def receive(self, timeout_s: float) -> list[ToEngine]:
        self.waits_s.append(timeout_s)
        return super().receive(0.0)


@dataclass(slots=True)
class Engine:
    """A loop that is ready to run, and what a test wants of its surroundings."""

    gateway: Gateway
    runner: WatchedRunner
    clock: Clock
    connection: NotingConnection
    pacer: NotingPacer
    scheduler: BlockedScheduler
    loop: Loop


@pytest.fixture
def engine() -> Iterator[Engine]:
    ours, theirs = socket.socketpair()
    runner, clock, pacer = WatchedRunner(), Clock(tick_s=0.0), NotingPacer()
    scheduler = make_scheduler(pacer)
    connection = NotingConnection(theirs)
    loop = Loop(connection, runner, scheduler, clock)
    yield Engine(Gateway(ours), runner, clock, connection, pacer, scheduler, loop)
    connection.close()
    ours.close()


def make_scheduler(pacer: NotingPacer) -> BlockedScheduler:
    return BlockedScheduler(
        ECHO_KV, context_tokens=CONTEXT_TOKENS, limit_bytes=1 << 30, pacer=pacer
    )


def submit(
    request_id: int = 1, prompt_tokens: int = 3, max_tokens: int = 3, penalty: float = 0.0
) -> Submit:
    sampling = Sampling(frequency_penalty=penalty)
    prompt = list(range(prompt_tokens))
    return Submit(request_id, prompt, max_tokens, stop_ids=[], sampling=sampling)


def tokens(frames: list[FromEngine]) -> list[Tokens]:
    return [frame for frame in frames if isinstance(frame, Tokens)]


def finished(frames: list[FromEngine]) -> list[Finished]:
    return [frame for frame in frames if isinstance(frame, Finished)]


def test_drain_ends_an_idle_engine_at_once(engine: Engine) -> None:
    engine.gateway.send(Drain())
    engine.loop.run()
    assert engine.gateway.read() == [Heartbeat(steps=0)]


def test_drain_finishes_what_runs_and_rejects_what_comes(engine: Engine) -> None:
    engine.gateway.send(submit(1), Drain(), submit(2))
    engine.loop.run()
    frames = engine.gateway.read()
    assert frames[0] == Rejected(2, RejectReason.DRAINING)
    assert finished(frames) == [Finished(1, FinishReason.LENGTH, 3, 3)]
    assert not engine.runner.open_rows


def test_a_step_is_launched_before_the_one_before_it_is_collected(engine: Engine) -> None:
    engine.gateway.send(submit(max_tokens=3), Drain())
    engine.loop.run()
    assert " ".join(engine.runner.calls) == "launch launch collect launch collect collect"


def test_a_row_that_needs_its_tokens_is_collected_before_the_next_launch(engine: Engine) -> None:
    engine.gateway.send(submit(max_tokens=3, penalty=0.5), Drain())
    engine.loop.run()
    assert " ".join(engine.runner.calls) == "launch collect launch collect launch collect"


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_running_ahead_changes_no_answer(engine: Engine, penalty: float) -> None:
    engine.gateway.send(submit(1, 3, 4, penalty), submit(2, 9, 2, penalty), Drain())
    engine.loop.run()
    frames = engine.gateway.read()
    ids = {1: [0, 1, 2, 0], 2: [0, 1]}
    for request_id, expected in ids.items():
        rows = [row for frame in tokens(frames) for row in frame.rows]
        assert [id_ for row in rows if row.request_id == request_id for id_ in row.ids] == expected


def test_all_rows_of_a_step_come_in_one_frame(engine: Engine) -> None:
    engine.gateway.send(submit(1, 2), submit(2, 2), Drain())
    engine.loop.run()
    assert tokens(engine.gateway.read())[0] == Tokens([RowTokens(1, [0]), RowTokens(2, [0])])


def test_prefill_progress_is_told_step_by_step(engine: Engine) -> None:
    engine.gateway.send(submit(prompt_tokens=10, max_tokens=1), Drain())
    engine.loop.run()
    progress = [frame for frame in engine.gateway.read() if isinstance(frame, Progress)]
    assert progress == [Progress(1, done, 10) for done in (0, 4, 8, 10)]


def test_a_second_request_is_told_what_was_cached(engine: Engine) -> None:
    """All but the last position: something must be left to compute."""

    def send_again(step: int) -> None:
        if step == 10:
            engine.gateway.send(submit(2, prompt_tokens=40, max_tokens=1), Drain())

    engine.runner.on_collect = send_again
    engine.gateway.send(submit(1, prompt_tokens=40, max_tokens=1))
    engine.loop.run()
    frames = engine.gateway.read()
    progress = [frame for frame in frames if isinstance(frame, Progress)]
    assert progress[-2:] == [Progress(2, 39, 40, 39), Progress(2, 40, 40, 39)]
    assert finished(frames)[-1] == Finished(2, FinishReason.LENGTH, 40, 1, cached_tokens=39)


def test_a_request_for_no_tokens_finishes_without_any(engine: Engine) -> None:
    engine.gateway.send(submit(prompt_tokens=10, max_tokens=0), Drain())
    engine.loop.run()
    frames = engine.gateway.read()
    assert tokens(frames) == []
    assert finished(frames) == [Finished(1, FinishReason.LENGTH, 10, 0)]


@pytest.mark.parametrize(
    ("cancel_at_step", "prompt_tokens"), [(1, 30), (5, 3)], ids=["prefilling", "decoding"]
)
def test_cancel_takes_effect_at_the_next_step(
    engine: Engine, cancel_at_step: int, prompt_tokens: int
) -> None:
    """It arrives while a step is waited for; one more step was launched by then, no other is."""

    def cancel(step: int) -> None:
        if step == cancel_at_step:
            engine.gateway.send(Cancel(1), Drain())

    engine.runner.on_collect = cancel
    engine.gateway.send(submit(prompt_tokens=prompt_tokens, max_tokens=500))
    engine.loop.run()
    assert finished(engine.gateway.read())[0].reason is FinishReason.CANCELLED
    assert len(engine.runner.plans) == cancel_at_step + 1
    assert not engine.runner.open_rows


def test_the_heartbeat_comes_every_second_even_between_long_steps(engine: Engine) -> None:
    def pass_time(step: int) -> None:
        engine.clock.now_s += 2 * HEARTBEAT_S

    engine.runner.on_collect = pass_time
    engine.gateway.send(submit(max_tokens=3), Drain())
    engine.loop.run()
    beats = [frame for frame in engine.gateway.read() if isinstance(frame, Heartbeat)]
    assert [beat.steps for beat in beats] == [0, 1, 2, 3]


def test_many_steps_within_a_second_share_one_heartbeat(engine: Engine) -> None:
    engine.gateway.send(submit(max_tokens=100), Drain())
    engine.loop.run()
    frames = engine.gateway.read()
    assert sum(isinstance(frame, Heartbeat) for frame in frames) == 1


def test_statistics_come_with_the_heartbeat_and_when_the_work_is_done(engine: Engine) -> None:
    engine.gateway.send(submit(prompt_tokens=3, max_tokens=2), Drain())
    engine.loop.run()
    stats = [frame for frame in engine.gateway.read() if isinstance(frame, Stats)]
    assert [(s.running, s.steps, s.prefill_tokens, s.decode_tokens) for s in stats] == [
        (1, 0, 3, 0),
        (0, 2, 3, 2),
    ]


def test_statistics_of_the_cache_agree_with_the_device(engine: Engine) -> None:
    engine.gateway.send(submit(prompt_tokens=40), Drain())
    engine.loop.run()
    stats = [frame for frame in engine.gateway.read() if isinstance(frame, Stats)][-1]
    assert stats.cache.bytes == engine.runner.held.cache_bytes > 0
    assert stats.kv_bytes == stats.cache.bytes + ECHO_KV.ring_bytes
    assert (stats.cache.asked_tokens, stats.cache.cached_tokens) == (40, 0)
    assert stats.prefill.target_itl_s == engine.pacer.stats().target_itl_s > 0


def test_the_pacer_is_told_what_each_step_took(engine: Engine) -> None:
    def take(step: int) -> None:
        engine.runner.step_s = float(step)

    engine.runner.on_collect = take
    engine.gateway.send(submit(max_tokens=3), Drain())
    engine.loop.run()
    assert engine.pacer.steps_s == [1.0, 2.0, 3.0]


def test_somebody_who_waits_for_memory_is_looked_after_soon(engine: Engine) -> None:
    """Neither busily nor only at the next heartbeat; the first one is due at once."""
    engine.scheduler.blocked = 3
    engine.gateway.send(submit(max_tokens=1), Drain())
    engine.loop.run()
    assert engine.connection.waits_s == [0.0, BLOCKED_S, BLOCKED_S, BLOCKED_S, 0.0, 0.0]


def test_an_idle_engine_beats_and_then_waits_for_messages(engine: Engine) -> None:
    """The clock passes the heartbeat's time at every reading, so no wait is a long one."""
    engine.clock.tick_s = HEARTBEAT_S
    beats = 0

    class Impatient(Connection):
        def receive(self, timeout_s: float) -> list[ToEngine]:
            nonlocal beats
            beats += 1
            return [Drain()] if beats > 3 else super().receive(timeout_s)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        scheduler = make_scheduler(NotingPacer())
        Loop(Impatient(theirs), engine.runner, scheduler, engine.clock).run()
        assert Gateway(ours).read() == [Heartbeat(0)] * 4


def test_the_end_of_the_gateway_ends_the_engine(engine: Engine) -> None:
    engine.gateway.send(submit(max_tokens=500))
    engine.gateway.close()
    with pytest.raises(ConnectionClosed):
        engine.loop.run()


def test_a_second_hello_is_a_protocol_error(engine: Engine) -> None:
    engine.gateway.send(Hello(1, 5))
    with pytest.raises(ProtocolError, match="Hello"):
        engine.loop.run()
