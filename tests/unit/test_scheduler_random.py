"""Random operations on the scheduler, with a runner that checks every step against the contract.

Prompts continue or share earlier ones, and memory is short: rows are admitted, grow, are preempted
and resumed, prefixes are found, split and evicted. Nothing may be lost, and nothing may wedge.
"""

import random
from dataclasses import dataclass, field, replace

import pytest

from tests.fakes import ECHO_KV, EchoRunner
from tests.schedulers import DictDisk, make_scheduler
from verger.engine.prefix_files import SaveOrder
from verger.engine.steps import MAX_LAUNCHED_STEPS
from verger.messages import (
    BACKGROUND,
    BATCH,
    INTERACTIVE,
    Finished,
    FinishReason,
    Progress,
    Rejected,
    RejectReason,
    Sampling,
    Submit,
    Tokens,
)

CONTEXT_TOKENS = 3_000
STOP_ID = 5
CALL_ID = 6
OPERATIONS = 300
MAX_STEPS = 20_000
"""To run out of work; a wedge shows as many more."""


@dataclass(slots=True)
class Request:
    """What a client of the scheduler has seen of one request."""

    submit: Submit
    is_cancelled: bool = False
    ids: list[int] = field(default_factory=list)
    prefilled_tokens: int = -1
    ending: Finished | Rejected | None = None


class Play:
    """A scheduler and a runner under random operations, and all that was seen of them."""

    def __init__(self, seed: int) -> None:
        self.random = rng = random.Random(seed)
        max_rows = rng.randint(1, 5)
        kv = replace(ECHO_KV, max_rows=max_rows)
        tokens = rng.choice([4_096, 5_500, 9_000, 30_000])
        self.scheduler = make_scheduler(
            max_rows,
            max_waiting=rng.randint(0, 5),
            alone=rng.randint(1, 1_500),
            beside=rng.randint(1, 500),
            context_tokens=CONTEXT_TOKENS,
            kv=kv,
            limit_bytes=kv.ring_bytes + tokens * kv.token_bytes,
            caches=rng.random() < 0.9,
        )
        self.runner = EchoRunner(CONTEXT_TOKENS, kv)
        self.disk = DictDisk(self.scheduler.kv, self.runner.export)
        if seed % 2:
            self.scheduler.kv.disk = self.disk
        self.requests: dict[int, Request] = {}
        self.now_s = 0.0

    def operate(self) -> None:
        self.now_s += self.random.choice([0.01, 0.01, 0.5, 20.0])
        choice = self.random.choices(
            [self.submit, self.cancel, self.launch, self.collect, self.use_disk],
            weights=[3, 1, 12, 10, 3],
        )
        choice[0]()
        self.scheduler.check_integrity()
        assert len(self.runner.open_rows) <= self.scheduler.max_rows
        self.read()

    def submit(self) -> None:
        rng = self.random
        priority = rng.choice([INTERACTIVE, INTERACTIVE, BATCH, BACKGROUND])
        is_prefill_only = priority == BACKGROUND
        prompt = self.prompt()
        submit = Submit(
            request_id=len(self.requests),
            prompt=prompt,
            max_tokens=0 if is_prefill_only else rng.choice([1, 5, 30, 600]),
            stop_ids=[STOP_ID, CALL_ID],
            kept_stop_ids=[CALL_ID],
            sampling=Sampling(frequency_penalty=rng.choice([0.0, 0.0, 0.5])),
            forks=[] if is_prefill_only else self.fork_ids(),
            boundaries=sorted(rng.sample(range(len(prompt)), k=min(3, len(prompt)))),
            cache_salt=rng.choice(["a", "a", "b"]),
            priority=priority,
            caller=rng.choice(["", "a", "b"]),
        )
        for request_id in (submit.request_id, *submit.forks):
            self.requests[request_id] = Request(submit)
        self.scheduler.submit(submit, self.now_s)

    def prompt(self) -> list[int]:
        """Something new, or an earlier sequence, whole or cut, and something new."""
        rng = self.random
        new = [rng.randrange(10, 100) for _ in range(rng.choice([1, 3, 40, 600, 2_000]))]
        if not self.requests or rng.random() < 0.2:
            return new + [rng.choice([STOP_ID, CALL_ID])] * rng.randint(0, 1)
        earlier = rng.choice(list(self.requests.values()))
        known = earlier.submit.prompt + earlier.ids
        cut = rng.choice([len(known), len(known), rng.randint(0, len(known))])
        return (known[:cut] + new[: rng.choice([0, 1, 50, len(new)])]) or new

    def fork_ids(self) -> list[int]:
        count = self.random.choice([0, 0, 0, self.random.randrange(self.scheduler.max_rows)])
        return [len(self.requests) + 1 + i for i in range(count)]

    def cancel(self) -> None:
        if self.requests:
            request_id = self.random.choice(list(self.requests))
            self.requests[request_id].is_cancelled = True
            self.scheduler.cancel(request_id, self.now_s)

    def launch(self) -> None:
        if self.scheduler.launched == MAX_LAUNCHED_STEPS or self.scheduler.must_settle:
            return
        step = self.scheduler.plan(self.now_s)
        for edit in step.edits:
            if isinstance(edit, SaveOrder):
                self.disk.save(edit)
            else:
                self.runner.apply(edit)
        if not step.plan.is_empty:
            self.runner.launch(step.plan)
        if not self.scheduler.kv.has_edits:
            assert self.runner.held.kv_bytes == self.scheduler.kv.used_bytes

    def collect(self) -> None:
        if self.scheduler.launched:
            self.scheduler.settle(self.runner.collect(), 0.01, self.now_s)

    def use_disk(self) -> None:
        if self.scheduler.kv.disk is None:
            return
        self.scheduler.kv.order_saves(self.now_s, limit=2)
        if self.random.random() < 0.1 and self.disk.files:
            del self.disk.files[self.random.choice(list(self.disk.files))]
        self.disk.settle(self.now_s)

    def read(self) -> None:
        for frame in self.scheduler.take_frames():
            match frame:
                case Tokens():
                    for row in frame.rows:
                        assert self.open(row.request_id).prefilled_tokens > 0
                        self.open(row.request_id).ids += row.ids
                case Progress():
                    request = self.open(frame.request_id)
                    request.prefilled_tokens = frame.prefilled_tokens
                    assert frame.prefilled_tokens <= frame.prompt_tokens
                case Finished() | Rejected():
                    self.open(frame.request_id).ending = frame

    def open(self, request_id: int) -> Request:
        request = self.requests[request_id]
        assert request.ending is None, "nothing follows a request's end"
        return request

    def run_out(self, *, drains: bool) -> None:
        """Draining gives up the background, which might be what wedges."""
        if drains:
            self.scheduler.drain(self.now_s)
        for _ in range(MAX_STEPS):
            if self.scheduler.is_idle:
                return
            self.now_s += 0.5
            self.disk.settle(self.now_s)
            self.collect()
            self.launch()
            self.read()
        pytest.fail("wedged")


def check(request: Request) -> None:
    """Exactly the tokens that the runner would have said, and a true reason."""
    prompt, ids = request.submit.prompt, request.ids
    assert ids == [prompt[index % len(prompt)] for index in range(len(ids))]
    assert not {STOP_ID, CALL_ID} & set(ids[:-1])
    match request.ending:
        case Rejected(reason=reason):
            assert (reason is RejectReason.TOO_LONG) == (len(prompt) >= CONTEXT_TOKENS)
            assert not ids
        case Finished(reason=reason, completion_tokens=completion_tokens) as ending:
            limit = min(request.submit.max_tokens, CONTEXT_TOKENS - len(prompt))
            assert completion_tokens == len(ids)
            assert ending.prompt_tokens == len(prompt)
            assert ending.cached_tokens < len(prompt) or not request.submit.max_tokens
            assert (reason is FinishReason.STOP) == bool({STOP_ID, CALL_ID} & set(ids))
            if reason is FinishReason.LENGTH:
                assert len(ids) == limit
            if reason is FinishReason.CANCELLED:
                assert request.is_cancelled or request.submit.priority == BACKGROUND
        case None:
            pytest.fail("a request without an end")


@pytest.mark.slow
# 35 and 95: the background kept the disk from those who waited, and they kept it from its row.
@pytest.mark.parametrize("seed", [*range(30), 35, 95])
def test_every_request_ends_once_and_with_its_own_tokens(seed: int) -> None:
    play = Play(seed)
    for _ in range(OPERATIONS):
        play.operate()
    play.run_out(drains=seed % 3 == 0)
    assert not play.runner.open_rows
    assert play.scheduler.running == play.scheduler.waiting == 0
    for request in play.requests.values():
        check(request)
