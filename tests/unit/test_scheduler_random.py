"""Random operations on the scheduler, with a runner that checks every plan against the contract."""

import random
from dataclasses import dataclass, field

import pytest

from tests.fakes import EchoRunner
from verger.engine.scheduler import Scheduler
from verger.engine.steps import MAX_LAUNCHED_STEPS
from verger.messages import (
    Finished,
    FinishReason,
    Progress,
    Rejected,
    RejectReason,
    Sampling,
    Submit,
    Tokens,
)

CONTEXT_TOKENS = 60
STOP_ID = 5
OPERATIONS = 400


@dataclass(slots=True)
class Request:
    """What a client of the scheduler has seen of one request."""

    submit: Submit
    is_cancelled: bool = False
    ids: list[int] = field(default_factory=list)
    prefilled_tokens: int = 0
    ending: Finished | Rejected | None = None


class Play:
    """A scheduler and a runner under random operations, and all that was seen of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(
            context_tokens=CONTEXT_TOKENS,
            max_rows=self.random.randint(1, 5),
            max_waiting=self.random.randint(0, 5),
            prefill_tokens_alone=self.random.randint(1, 50),
            prefill_tokens_shared=self.random.randint(1, 20),
        )
        self.runner = EchoRunner(CONTEXT_TOKENS)
        self.requests: dict[int, Request] = {}

    def operate(self) -> None:
        choice = self.random.choices(
            [self.submit, self.cancel, self.launch, self.collect], weights=[3, 1, 8, 6]
        )
        choice[0]()
        self.scheduler.check_integrity()
        assert len(self.runner.open_rows) <= self.scheduler.max_rows
        self.read()

    def submit(self) -> None:
        rng = self.random
        prompt = [rng.randrange(100) for _ in range(rng.randint(1, CONTEXT_TOKENS + 2))]
        penalty = rng.choice([0.0, 0.0, 0.5])
        submit = Submit(
            request_id=len(self.requests),
            prompt=prompt,
            max_tokens=rng.randint(1, 30),
            stop_ids=[STOP_ID],
            sampling=Sampling(frequency_penalty=penalty),
            forks=self.fork_ids(),
        )
        for request_id in (submit.request_id, *submit.forks):
            self.requests[request_id] = Request(submit)
        self.scheduler.submit(submit)

    def fork_ids(self) -> list[int]:
        count = self.random.choice([0, 0, 0, self.random.randrange(self.scheduler.max_rows)])
        return [len(self.requests) + 1 + i for i in range(count)]

    def cancel(self) -> None:
        if self.requests:
            request_id = self.random.choice(list(self.requests))
            self.requests[request_id].is_cancelled = True
            self.scheduler.cancel(request_id)

    def launch(self) -> None:
        if self.scheduler.launched == MAX_LAUNCHED_STEPS or self.scheduler.needs_tokens:
            return
        step = self.scheduler.plan()
        for request_id in step.closed:
            self.runner.close(request_id)
        for submit in step.opened:
            self.runner.open(submit)
        if not step.plan.is_empty:
            self.runner.launch(step.plan)

    def collect(self) -> None:
        if self.scheduler.launched:
            self.scheduler.settle(self.runner.collect())

    def read(self) -> None:
        for frame in self.scheduler.take_frames():
            match frame:
                case Tokens():
                    for row in frame.rows:
                        assert self.open(row.request_id).prefilled_tokens
                        self.open(row.request_id).ids += row.ids
                case Progress():
                    assert frame.prefilled_tokens > self.open(frame.request_id).prefilled_tokens
                    self.open(frame.request_id).prefilled_tokens = frame.prefilled_tokens
                case Finished() | Rejected():
                    self.open(frame.request_id).ending = frame

    def open(self, request_id: int) -> Request:
        request = self.requests[request_id]
        assert request.ending is None, "nothing follows a request's end"
        return request

    def run_out(self) -> None:
        self.scheduler.drain()
        while not self.scheduler.is_idle:
            self.collect()
            self.launch()
            self.read()


def check(request: Request) -> None:
    """Exactly the tokens that the runner would have said, and a true reason."""
    prompt, ids = request.submit.prompt, request.ids
    assert ids == [prompt[index % len(prompt)] for index in range(len(ids))]
    assert STOP_ID not in ids[:-1]
    match request.ending:
        case Rejected(reason=reason):
            assert (reason is RejectReason.TOO_LONG) == (len(prompt) >= CONTEXT_TOKENS)
            assert not ids
        case Finished(reason=reason, completion_tokens=completion_tokens):
            limit = min(request.submit.max_tokens, CONTEXT_TOKENS - len(prompt))
            assert completion_tokens == len(ids)
            assert (reason is FinishReason.STOP) == (STOP_ID in ids)
            if reason is FinishReason.LENGTH:
                assert len(ids) == limit
            if reason is FinishReason.CANCELLED:
                assert request.is_cancelled
        case None:
            pytest.fail("a request without an end")


@pytest.mark.parametrize("seed", range(40))
def test_every_request_ends_once_and_with_its_own_tokens(seed: int) -> None:
    play = Play(seed)
    for _ in range(OPERATIONS):
        play.operate()
    play.run_out()
    assert not play.runner.open_rows
    assert play.scheduler.running == play.scheduler.waiting == 0
    for request in play.requests.values():
        check(request)
