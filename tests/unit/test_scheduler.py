"""The scheduler's rules, one by one; `test_scheduler_random.py` mixes them."""

import itertools
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from tests.fakes import EchoRunner
from tests.schedulers import PlainScheduler, closed, make_scheduler, opened
from verger.engine.prefix_files import SaveOrder
from verger.engine.sequence import Sequence as ScheduledSequence
from verger.engine.sequence import SequenceState
from verger.engine.steps import Plan, Prefill, Sampled
from verger.messages import (
    Finished,
    FinishReason,
    FromEngine,
    Logprob,
    Progress,
    Rejected,
    RejectReason,
    RowTokens,
    Sampling,
    Submit,
    Tokens,
)

CONTEXT_TOKENS = 100
STOP_ID = 99


def submit(
    request_id: int,
    prompt_tokens: int = 3,
    max_tokens: int = 5,
    sampling: Sampling | None = None,
    grammar: str | None = None,
) -> Submit:
    return Submit(
        request_id=request_id,
        prompt=list(range(prompt_tokens)),
        max_tokens=max_tokens,
        stop_ids=[STOP_ID],
        sampling=sampling or Sampling(),
        grammar=grammar,
    )


def step(scheduler: PlainScheduler, *ids: tuple[int, int]) -> Plan:
    """One step without launching ahead: plan it, then settle (request, token) pairs."""
    plan = scheduler.plan().plan
    scheduler.settle([Sampled(request_id, token_id) for request_id, token_id in ids])
    return plan


def chunks(plan: Plan) -> list[tuple[int, int, int]]:
    """Who is prefilled from where to where."""
    return [(prefill.request_id, prefill.start, prefill.stop) for prefill in plan.prefills]


def finished(frames: Iterable[FromEngine]) -> list[tuple[int, FinishReason, int]]:
    return [
        (frame.request_id, frame.reason, frame.completion_tokens)
        for frame in frames
        if isinstance(frame, Finished)
    ]


def decoding(scheduler: PlainScheduler, *request_ids: int) -> None:
    """Bring requests to where their first token is settled."""
    for request_id in request_ids:
        scheduler.submit(submit(request_id))
    step(scheduler, *((request_id, 7) for request_id in request_ids))
    scheduler.take_frames()


def test_a_request_is_prefilled_decoded_and_finished() -> None:
    scheduler = make_scheduler()
    asked = submit(1, prompt_tokens=3, max_tokens=2)
    scheduler.submit(asked)
    first = scheduler.plan()
    assert opened(first) == [asked]
    assert chunks(first.plan) == [(1, 0, 3)]
    scheduler.settle([Sampled(1, 7)])
    second = scheduler.plan()
    assert opened(second) == []
    assert second.plan == Plan(decodes=(1,))
    scheduler.settle([Sampled(1, 8)])
    assert scheduler.take_frames() == [
        Progress(1, prefilled_tokens=0, prompt_tokens=3),
        Progress(1, prefilled_tokens=3, prompt_tokens=3),
        Tokens([RowTokens(1, [7])]),
        Tokens([RowTokens(1, [8])]),
        Finished(1, FinishReason.LENGTH, prompt_tokens=3, completion_tokens=2),
    ]
    assert closed(scheduler.plan()) == [1]
    assert scheduler.is_idle
    assert (scheduler.steps, scheduler.prefill_tokens, scheduler.decode_tokens) == (2, 3, 2)


def test_a_stop_id_finishes_the_row_and_is_its_last_token() -> None:
    scheduler = make_scheduler()
    decoding(scheduler, 1)
    step(scheduler, (1, STOP_ID))
    assert scheduler.take_frames() == [
        Tokens([RowTokens(1, [STOP_ID])]),
        Finished(1, FinishReason.STOP, prompt_tokens=3, completion_tokens=2),
    ]


def test_a_stop_id_may_be_the_very_first_token() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1))
    step(scheduler, (1, STOP_ID))
    assert finished(scheduler.take_frames()) == [(1, FinishReason.STOP, 1)]


def test_a_stop_id_as_the_last_allowed_token_counts_as_a_stop() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, max_tokens=1))
    step(scheduler, (1, STOP_ID))
    assert finished(scheduler.take_frames()) == [(1, FinishReason.STOP, 1)]


def test_a_token_launched_beyond_the_stop_leaves_no_trace() -> None:
    scheduler = make_scheduler()
    decoding(scheduler, 1)
    scheduler.plan()
    ahead = scheduler.plan()
    assert ahead.plan.decodes == (1,)
    scheduler.settle([Sampled(1, STOP_ID)])
    assert finished(scheduler.take_frames()) == [(1, FinishReason.STOP, 2)]
    decode_tokens = scheduler.decode_tokens
    scheduler.settle([Sampled(1, 50)])
    assert scheduler.take_frames() == []
    assert scheduler.decode_tokens == decode_tokens


def test_nothing_is_launched_beyond_max_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, max_tokens=2))
    assert scheduler.plan().plan.prefills
    assert scheduler.plan().plan.decodes == (1,)
    scheduler.settle([Sampled(1, 7)])
    assert scheduler.plan().plan.is_empty
    scheduler.settle([Sampled(1, 8)])
    assert finished(scheduler.take_frames()) == [(1, FinishReason.LENGTH, 2)]


def test_a_single_token_needs_no_decode() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, max_tokens=1))
    scheduler.plan()
    assert scheduler.plan().plan.is_empty
    scheduler.settle([Sampled(1, 7)])
    assert finished(scheduler.take_frames()) == [(1, FinishReason.LENGTH, 1)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 40, 89, 90, 91])
def test_every_prompt_token_is_prefilled_once_with_any_chunk_size(chunk: int) -> None:
    scheduler = make_scheduler(alone=chunk)
    scheduler.submit(submit(1, prompt_tokens=90, max_tokens=1))
    prefills: list[Prefill] = []
    while not (plan := scheduler.plan().plan).is_empty:
        prefills += plan.prefills
        scheduler.settle([Sampled(1, 7)] if prefills[-1].stop == 90 else [])
    assert [position for c in prefills for position in range(c.start, c.stop)] == list(range(90))
    assert all(c.stop - c.start <= chunk for c in prefills)


def test_prefill_gets_the_small_budget_while_others_decode() -> None:
    scheduler = make_scheduler(alone=40, beside=10)
    decoding(scheduler, 1)
    scheduler.submit(submit(2, prompt_tokens=60))
    shared = step(scheduler, (1, 7))
    assert (chunks(shared), shared.decodes) == ([(2, 0, 10)], (1,))
    scheduler.cancel(1)
    alone = step(scheduler)
    assert (chunks(alone), alone.decodes) == ([(2, 10, 50)], ())


def test_short_prompts_share_one_chunk_and_take_turns() -> None:
    scheduler = make_scheduler(alone=10, caches=False)
    for request_id, prompt_tokens in ((1, 4), (2, 4), (3, 4), (4, 4)):
        scheduler.submit(submit(request_id, prompt_tokens))
    assert scheduler.plan().plan.prefills == (Prefill(1, 0, 4), Prefill(2, 0, 4), Prefill(3, 0, 2))
    scheduler.settle([Sampled(1, 7), Sampled(2, 7)])
    assert scheduler.plan().plan == Plan((Prefill(4, 0, 4), Prefill(3, 2, 4)), (1, 2))


def test_progress_is_told_once_a_step_and_request() -> None:
    scheduler = make_scheduler(alone=40)
    scheduler.submit(submit(1, prompt_tokens=90))
    step(scheduler)
    assert scheduler.take_frames() == [Progress(1, 0, 90), Progress(1, 40, 90)]
    step(scheduler)
    assert scheduler.take_frames() == [Progress(1, 80, 90)]


def test_all_rows_share_one_tokens_frame() -> None:
    scheduler = make_scheduler()
    decoding(scheduler, 1, 2, 3)
    step(scheduler, (1, 10), (2, 20), (3, 30))
    rows = [RowTokens(1, [10]), RowTokens(2, [20]), RowTokens(3, [30])]
    assert scheduler.take_frames() == [Tokens(rows)]


def test_rows_are_limited_and_refilled_when_one_ends() -> None:
    scheduler = make_scheduler(max_rows=2)
    for request_id in (1, 2, 3):
        scheduler.submit(submit(request_id, max_tokens=1))
    assert [s.request_id for s in opened(scheduler.plan())] == [1, 2]
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    scheduler.settle([Sampled(1, 7), Sampled(2, 7)])
    refill = scheduler.plan()
    assert closed(refill) == [1, 2]
    assert [s.request_id for s in opened(refill)] == [3]


@pytest.mark.parametrize("is_planned", [False, True])
def test_the_queue_takes_its_limit_and_rejects_one_more(is_planned: bool) -> None:
    """Free rows do not count as queue, whether or not a step has filled them yet."""
    scheduler = make_scheduler(max_rows=2, max_waiting=3)
    for request_id in (1, 2):
        scheduler.submit(submit(request_id))
    if is_planned:
        scheduler.plan()
    for request_id in (3, 4, 5):
        scheduler.submit(submit(request_id))
    scheduler.submit(submit(6))
    rejected = [frame for frame in scheduler.take_frames() if isinstance(frame, Rejected)]
    assert rejected == [Rejected(6, RejectReason.QUEUE_FULL)]
    scheduler.check_integrity()


def test_a_prompt_that_fills_the_context_is_rejected() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, prompt_tokens=CONTEXT_TOKENS))
    assert scheduler.take_frames() == [Rejected(1, RejectReason.TOO_LONG)]
    assert scheduler.is_idle


def test_generation_ends_at_the_contexts_end() -> None:
    scheduler = make_scheduler(alone=CONTEXT_TOKENS)
    scheduler.submit(submit(1, prompt_tokens=CONTEXT_TOKENS - 2, max_tokens=50))
    step(scheduler, (1, 7))
    step(scheduler, (1, 8))
    assert finished(scheduler.take_frames()) == [(1, FinishReason.LENGTH, 2)]


def test_cancel_while_waiting_never_opens_a_row() -> None:
    scheduler = make_scheduler(max_rows=1)
    decoding(scheduler, 1)
    scheduler.submit(submit(2))
    scheduler.cancel(2)
    assert finished(scheduler.take_frames()) == [(2, FinishReason.CANCELLED, 0)]
    assert closed(scheduler.plan()) == []


def test_cancel_during_prefill_frees_the_row_at_the_next_step() -> None:
    scheduler = make_scheduler(alone=40)
    scheduler.submit(submit(1, prompt_tokens=90))
    scheduler.plan()
    scheduler.cancel(1)
    after = scheduler.plan()
    assert closed(after) == [1]
    assert after.plan.is_empty
    scheduler.settle([])
    assert scheduler.take_frames() == [
        Progress(1, 0, 90),
        Finished(1, FinishReason.CANCELLED, 90, 0),
    ]
    assert scheduler.prefill_tokens == 40


def test_cancel_while_decoding_drops_the_launched_token() -> None:
    scheduler = make_scheduler()
    decoding(scheduler, 1, 2)
    scheduler.plan()
    scheduler.cancel(1)
    assert finished(scheduler.take_frames()) == [(1, FinishReason.CANCELLED, 1)]
    assert scheduler.plan().plan.decodes == (2,)
    scheduler.settle([Sampled(1, 8), Sampled(2, 8)])
    assert scheduler.take_frames() == [Tokens([RowTokens(2, [8])])]


def test_cancel_of_what_has_ended_changes_nothing() -> None:
    scheduler = make_scheduler()
    scheduler.cancel(12)
    scheduler.submit(submit(1))
    scheduler.cancel(1)
    scheduler.cancel(1)
    assert finished(scheduler.take_frames()) == [(1, FinishReason.CANCELLED, 0)]


def test_draining_rejects_what_comes_and_finishes_what_was_taken() -> None:
    scheduler = make_scheduler(max_rows=1)
    scheduler.submit(submit(1, max_tokens=1))
    scheduler.submit(submit(2, max_tokens=1))
    scheduler.drain()
    scheduler.submit(submit(3))
    assert scheduler.take_frames() == [Rejected(3, RejectReason.DRAINING)]
    step(scheduler, (1, 7))
    step(scheduler, (2, 7))
    assert [request_id for request_id, *_ in finished(scheduler.take_frames())] == [1, 2]


@pytest.mark.parametrize(
    "asked",
    [
        submit(1, sampling=Sampling(frequency_penalty=0.1)),
        submit(1, sampling=Sampling(presence_penalty=-0.1)),
        submit(1, sampling=Sampling(repetition_penalty=1.1)),
        submit(1, grammar="root ::= x"),
    ],
    ids=["frequency", "presence", "repetition", "grammar"],
)
def test_a_row_that_depends_on_its_own_tokens_holds_the_next_plan(asked: Submit) -> None:
    scheduler = make_scheduler()
    scheduler.submit(asked)
    assert not scheduler.needs_tokens
    scheduler.plan()
    assert scheduler.needs_tokens
    scheduler.settle([Sampled(1, 7)])
    assert not scheduler.needs_tokens


def test_prefill_alone_holds_nothing() -> None:
    scheduler = make_scheduler(alone=40)
    scheduler.submit(submit(1, prompt_tokens=90, grammar="root ::= x"))
    scheduler.plan()
    assert not scheduler.needs_tokens


def test_plain_sampling_runs_ahead() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1, sampling=Sampling(temperature=0.5, logit_bias={3: 1.0}, seed=1)))
    scheduler.plan()
    assert not scheduler.needs_tokens


def test_logprobs_travel_with_their_token() -> None:
    scheduler = make_scheduler()
    scheduler.submit(submit(1))
    scheduler.plan()
    scheduler.settle([Sampled(1, 7, Logprob(-0.5))])
    tokens = [frame for frame in scheduler.take_frames() if isinstance(frame, Tokens)]
    assert tokens == [Tokens([RowTokens(1, [7], [Logprob(-0.5)])])]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pair
        for pair in itertools.product(SequenceState, SequenceState)
        if pair
        not in {
            (SequenceState.WAITING, SequenceState.PREFILLING),
            (SequenceState.WAITING, SequenceState.FINISHED),
            (SequenceState.PREFILLING, SequenceState.DECODING),
            (SequenceState.PREFILLING, SequenceState.WAITING),
            (SequenceState.PREFILLING, SequenceState.FINISHED),
            (SequenceState.DECODING, SequenceState.WAITING),
            (SequenceState.DECODING, SequenceState.FINISHED),
        }
    ],
)
def test_an_illegal_move_of_a_sequence_is_a_defect(
    before: SequenceState, after: SequenceState
) -> None:
    asked = submit(1)
    sequence = ScheduledSequence(asked, asked, 5, order=1, arrived_s=0.0, state=before)
    with pytest.raises(AssertionError):
        sequence.move(after)


@pytest.mark.parametrize(
    "defect", [submit(1, prompt_tokens=0), replace(submit(1, max_tokens=0), forks=[2])]
)
def test_an_empty_prompt_or_forks_of_nothing_are_the_gateways_defect(defect: Submit) -> None:
    with pytest.raises(AssertionError):
        make_scheduler().submit(defect)


def test_the_fake_runner_agrees_with_the_scheduler_on_the_contexts_last_token() -> None:
    """The last token is sampled, but never fed: its position would lie beyond the context."""
    scheduler, runner = make_scheduler(alone=CONTEXT_TOKENS), EchoRunner(CONTEXT_TOKENS)
    scheduler.submit(submit(1, prompt_tokens=CONTEXT_TOKENS - 3, max_tokens=50))
    while not scheduler.is_idle:
        planned = scheduler.plan()
        for edit in planned.edits:
            assert not isinstance(edit, SaveOrder)
            runner.apply(edit)
        if not planned.plan.is_empty:
            runner.launch(planned.plan)
            scheduler.settle(runner.collect())
        frames = scheduler.take_frames()
        if frames and isinstance(frames[-1], Finished):
            assert frames[-1].completion_tokens == 3
