"""Any hit gives what a cold prefill gives: prefixes that were kept, moved, divided and restored.

The oracle is mlx-lm's own model on everything that was said: it must find the log-probabilities
that a restored row reports, and, in float32, the row must say what a cold row says.
"""

from random import Random

import mlx.core as mx
import pytest

from tests.mlx.direct import Direct
from tests.mlx.harness import cold_logits, random_gpt_oss, random_ids, runner_of, worst_error
from verger.engine.device.kv import KVShape
from verger.engine.device.model import GptOss
from verger.engine.device.spans import Piece, piece_from
from verger.engine.steps import (
    Cut,
    FreeSpan,
    FreeWindow,
    Import,
    Kept,
    Plan,
    Prefill,
    Running,
    Split,
    Stored,
)
from verger.messages import Sampling, Submit

pytestmark = pytest.mark.mlx

TOLERANCE = 1e-3
STEPS = 6


@pytest.fixture(scope="module")
def model() -> GptOss:
    return random_gpt_oss(seed=3)


def finish(direct: Direct, model: GptOss, request_id: int) -> None:
    """Prefill and decode a greedy row, which must say what it would say cold."""
    direct.prefill(request_id)
    direct.decode([request_id], STEPS)
    answer = direct.answer(request_id)
    prompt = direct.submits[request_id].prompt
    assert len(answer.logprobs) == STEPS + 1
    cold = cold_logits(model, [*prompt, *answer.ids])[len(prompt) - 1 : -1]
    assert mx.argmax(cold, axis=-1).tolist() == answer.ids
    best = mx.max(cold - mx.logsumexp(cold, axis=-1, keepdims=True), axis=-1)
    reported = mx.array([entry.logprob for entry in answer.logprobs])
    assert float(mx.abs(best - reported).max()) <= TOLERANCE


def keep_prompt(direct: Direct, prompt: list[int], at: int, chunk: int = 2048) -> None:
    """Compute a prompt, cutting window 1 at `at`; keep that much as span 1."""
    direct.open(0, prompt)
    direct.prefill(0, chunk=chunk, cuts=[Cut(1, at)])
    direct.close(0, [Kept(1, 0, at)])


@pytest.mark.parametrize(
    ("prompt_tokens", "at", "chunk"),
    [
        (100, 60, 2048),
        (200, 127, 2048),
        (200, 128, 64),
        (240, 129, 2048),
        (320, 310, 150),
        (320, 300, 100),
        (700, 512, 700),
    ],
    ids=[
        "window open, cut inside a chunk",
        "window just full",
        "window just wrapped, cut at a chunk's end",
        "first position lost",
        "wrapped, cut soon after a chunk's start",
        "wrapped, cut at a chunk's end",
        "wrapped, cut inside a chunk of several blocks of queries",
    ],
)
def test_a_checkpoint_in_a_prompt(model: GptOss, prompt_tokens: int, at: int, chunk: int) -> None:
    """The same prompt again, and another one that goes on from the checkpoint."""
    random = Random(prompt_tokens)
    prompt = random_ids(random, prompt_tokens)
    direct = Direct(model)
    keep_prompt(direct, prompt, at, chunk)
    direct.open(1, prompt, [Stored(1, 0, at)], 1)
    finish(direct, model, 1)
    direct.close(1, [Kept(2, 0, at)])
    direct.open(2, prompt[:at] + random_ids(random, 90), [Stored(2, 0, at)], 1)
    finish(direct, model, 2)


@pytest.mark.parametrize("prompt_tokens", [90, 128, 300])
def test_an_exact_repeat_computes_one_token(model: GptOss, prompt_tokens: int) -> None:
    prompt = random_ids(Random(1), prompt_tokens)
    direct = Direct(model)
    keep_prompt(direct, prompt, prompt_tokens - 1)
    direct.open(1, prompt, [Stored(1, 0, prompt_tokens - 1)], 1)
    finish(direct, model, 1)


@pytest.mark.parametrize("prompt_tokens", [40, 200])
@pytest.mark.parametrize("is_ahead", [False, True], ids=["settled", "a step ahead"])
def test_an_answer_is_extended(model: GptOss, prompt_tokens: int, is_ahead: bool) -> None:
    """The window is cut from the ring when the row closes, also when a step launched ahead has
    written one more position, which is computed but not kept."""
    random = Random(2)
    prompt = random_ids(random, prompt_tokens)
    direct = Direct(model)
    direct.open(0, prompt)
    direct.prefill(0)
    direct.decode([0], 9)
    at = direct.length[0]
    if is_ahead:
        direct.launch(Plan(decodes=(0,)))
    direct.close(0, [Kept(1, 0, at)], Cut(1, at))
    direct.collect()
    longer = [*prompt, *direct.answer(0).ids[:9], *random_ids(random, 30)]
    direct.open(1, longer, [Stored(1, 0, at)], 1)
    finish(direct, model, 1)


def test_a_row_closed_at_once_gives_back_what_it_was_given(model: GptOss) -> None:
    """Nothing was computed since it was restored: a client gave up while it waited."""
    prompt = random_ids(Random(3), 300)
    direct = Direct(model)
    keep_prompt(direct, prompt, 250)
    direct.open(1, prompt, [Stored(1, 0, 250)], 1)
    direct.close(1, [Kept(2, 0, 250)], Cut(2, 250))
    direct.open(2, prompt, [Stored(2, 0, 250)], 2)
    finish(direct, model, 2)


def test_no_window_is_cut_where_the_ring_does_not_reach(model: GptOss) -> None:
    prompt = random_ids(Random(3), 300)
    direct = Direct(model)
    keep_prompt(direct, prompt, 250)
    direct.open(1, prompt, [Stored(1, 0, 250)], 1)
    with pytest.raises(AssertionError):
        direct.close(1, [], Cut(2, 249))


def test_two_prompts_share_what_they_have_in_common(model: GptOss) -> None:
    """They diverge in the middle of a span, which is divided there."""
    random = Random(4)
    prompt = random_ids(random, 420)
    other = [*prompt[:200], *random_ids(random, 150)]
    direct = Direct(model)
    direct.open(0, prompt)
    direct.prefill(0, chunk=170, cuts=[Cut(1, 200), Cut(2, 400)])
    direct.close(0, [Kept(1, 0, 400)])
    direct.runner.apply(Split(1, 2, 200))
    direct.open(1, other, [Stored(2, 0, 200)], 1)
    finish(direct, model, 1)
    direct.close(1, [Kept(3, 0, 200), Kept(4, 200, 349)])
    direct.open(2, prompt, [Stored(3, 0, 200), Stored(1, 200, 400)], 2)
    finish(direct, model, 2)


@pytest.mark.parametrize("room", [64, 400], ids=["same block", "another block"])
def test_a_prefix_that_a_running_row_holds(model: GptOss, room: int) -> None:
    """Its source decodes on, with a step under way, and is not disturbed."""
    random = Random(5)
    prompt = random_ids(random, 220)
    other = [*prompt[:210], *random_ids(random, 10)]
    direct = Direct(model)
    direct.open(0, prompt)
    direct.prefill(0, cuts=[Cut(1, 210)])
    direct.launch(Plan(decodes=(0,)))
    direct.open(1, other, [Running(0, 0, 210)], 1, room=room)
    is_same = direct.place_of[0].block_id == direct.place_of[1].block_id
    assert is_same == (room == 64)
    direct.collect()
    finish(direct, model, 1)
    direct.decode([0, 1], 5)
    assert worst_error(model, prompt, direct.answer(0)) <= TOLERANCE
    assert worst_error(model, other, direct.answer(1)) <= TOLERANCE


def test_a_prefix_in_pieces_of_both_kinds_while_its_row_is_still_prefilled(
    model: GptOss,
) -> None:
    random = Random(6)
    prompt = random_ids(random, 390)
    direct = Direct(model)
    keep_prompt(direct, prompt, 130)
    direct.open(1, prompt, [Stored(1, 0, 130)], 1)
    direct.prefill(1, stop=330, chunk=100, cuts=[Cut(2, 300)])
    direct.open(2, prompt, [Running(1, 0, 300)], 2)
    direct.prefill(2, stop=380, cuts=[Cut(3, 360)])
    direct.open(3, prompt, [Running(1, 0, 60), Running(2, 60, 300), Running(2, 300, 360)], 3)
    for request_id in (1, 2, 3):
        finish(direct, model, request_id)


def test_a_window_is_used_by_an_edit_behind_the_launch_that_cuts_it(model: GptOss) -> None:
    prompt = random_ids(Random(7), 300)
    direct = Direct(model)
    direct.open(0, prompt)
    direct.launch(Plan((Prefill(0, 0, 300, (), (Cut(1, 280),)),)))
    direct.open(1, prompt, [Running(0, 0, 280)], 1)
    direct.close(0, [], Cut(2, 300))
    direct.collect()
    finish(direct, model, 1)


@pytest.mark.parametrize(("at", "first"), [(90, 0), (260, 0), (260, 100)])
def test_what_was_exported_comes_back(model: GptOss, at: int, first: int) -> None:
    """In another engine of the same fingerprint; also only what is missing there."""
    prompt = random_ids(Random(8), 300)
    old, new = Direct(model), Direct(model)
    keep_prompt(old, prompt, at)
    whole = Stored(1, 0, at)
    payload = old.runner.export(whole, 1)
    window_tokens = min(at, 127)
    kv = old.runner.kv
    assert len(payload) == at * kv.token_bytes + window_tokens * kv.sliding_token_bytes
    assert old.runner.export(whole, None) == payload[: at * kv.token_bytes]
    sources = [Stored(1, first, at)]
    if first > 0:
        keep_prompt(new, prompt, first)
        new.runner.apply(FreeWindow(1))
        sources = [Stored(1, 0, first), Stored(2, first, at)]
    new.runner.apply(Import(payload, at, window_tokens, first, at, 1 if first == 0 else 2, 9))
    new.open(1, prompt, sources, 9)
    finish(new, model, 1)


def test_a_window_is_the_same_from_a_chunk_and_from_the_ring(model: GptOss) -> None:
    direct = Direct(model)
    direct.open(0, random_ids(Random(16), 300))
    direct.prefill(0, cuts=[Cut(1, 300)])
    direct.launch(Plan(decodes=(0,)))
    direct.close(0, [Kept(1, 0, 300)], Cut(2, 300))
    whole = Stored(1, 0, 300)
    assert direct.runner.export(whole, 1) == direct.runner.export(whole, 2)


def test_a_running_row_is_exported_as_the_span_that_it_leaves(model: GptOss) -> None:
    """While a launched step computes it, which then goes on undisturbed."""
    direct, alone = Direct(model), Direct(model)
    prompt = random_ids(Random(17), 300)
    for engine in (direct, alone):
        engine.open(0, prompt)
        engine.prefill(0, cuts=[Cut(1, 256)])
        engine.launch(Plan(decodes=(0,)))
    running = direct.runner.export(Running(0, 200, 256), 1)
    for engine in (direct, alone):
        engine.launch(Plan(decodes=(0,)))
    assert direct.runner.collect() == alone.runner.collect()
    assert direct.runner.collect() == alone.runner.collect()
    direct.close(0, [Kept(1, 200, 256)])
    assert direct.runner.export(Stored(1, 200, 256), 1) == running


def test_halved_precision_is_exported_as_it_is() -> None:
    shape = KVShape(layers=3, kv_heads=2, head_dim=4, dtype=mx.bfloat16)
    layers = [mx.random.normal((2, 2, 10, 4)).astype(mx.bfloat16) for _ in range(3)]
    payload = b"".join(Piece(shape, 10, layers).exported())
    assert len(payload) == 10 * shape.token_bytes
    part = piece_from(memoryview(payload), shape, 10, 3, 9)
    assert part.kv_bytes == 6 * shape.token_bytes
    for whole, layer in zip(layers, part.layers, strict=True):
        assert layer.dtype == mx.bfloat16
        assert mx.array_equal(layer, whole[:, :, 3:9])


def test_a_restored_row_moves(model: GptOss) -> None:
    """To a larger block of its own, and beside others; with a step under way."""
    prompt = random_ids(Random(9), 200)
    direct = Direct(model)
    keep_prompt(direct, prompt, 150)
    direct.open(1, prompt, [Stored(1, 0, 150)], 1, room=5)
    direct.open(2, prompt[:40])
    direct.prefill(2)
    direct.move(1, 300)
    direct.prefill(1)
    direct.decode([1, 2], 4)
    direct.launch(Plan(decodes=(1, 2)))
    direct.move(2, 300)
    direct.collect()
    direct.decode([1, 2], 4)
    direct.move(1, 5000)
    direct.decode([2, 1], 4)
    assert worst_error(model, prompt, direct.answer(1)) <= TOLERANCE
    assert worst_error(model, prompt[:40], direct.answer(2)) <= TOLERANCE


def test_a_restored_prompt_forks(model: GptOss) -> None:
    prompt = random_ids(Random(10), 240)
    direct = Direct(model)
    keep_prompt(direct, prompt, 200)
    for choice in range(3):
        sampling = Sampling(seed=1, choice=choice)
        submit = Submit(1 + choice, prompt, 30, [], sampling, logprobs=0)
        sources = [Stored(1, 0, 200)] if choice == 0 else []
        room = 400 if choice == 2 else 64
        direct.open(1 + choice, prompt, sources, 1 if sources else None, room, submit)
    direct.prefill(1, forks=[2, 3])
    direct.decode([1, 2, 3], STEPS)
    answers = [direct.answer(request_id) for request_id in (1, 2, 3)]
    assert len({tuple(answer.ids) for answer in answers}) == 3
    for answer in answers:
        assert worst_error(model, prompt, answer) <= TOLERANCE


def test_a_preempted_row_resumes_with_its_own_random_stream(model: GptOss) -> None:
    prompt = random_ids(Random(11), 200)
    whole = Direct(model)
    whole.open(0, prompt, submit=Submit(0, prompt, 30, [], Sampling(seed=4), logprobs=0))
    whole.prefill(0)
    whole.decode([0], 20)
    ids = whole.answer(0).ids
    direct = Direct(model)
    direct.open(0, prompt, submit=Submit(0, prompt, 30, [], Sampling(seed=4), logprobs=0))
    direct.prefill(0)
    direct.decode([0], 7)
    direct.close(0, [Kept(1, 0, 207)], Cut(1, 207))
    said = [*prompt, *ids[:8]]
    resumed = Submit(1, said, 22, [], Sampling(seed=4), logprobs=0, resumed_tokens=8)
    direct.open(1, said, [Stored(1, 0, 207)], 1, submit=resumed)
    direct.prefill(1)
    direct.decode([1], 12)
    assert direct.answer(1).ids == ids[8:]
    assert worst_error(model, said, direct.answer(1)) <= TOLERANCE


def test_a_prompt_without_answer_samples_nothing(model: GptOss) -> None:
    """Background prefill: beside a row that decodes, in chunks, and found by a later one."""
    random = Random(12)
    prompt, beside = random_ids(random, 300), random_ids(random, 50)
    direct = Direct(model)
    direct.open(0, beside)
    direct.prefill(0)
    direct.open(1, prompt, submit=Submit(1, prompt, 0, [], Sampling()))
    direct.launch(Plan((Prefill(1, 0, 180),), (0,)))
    direct.launch(Plan((Prefill(1, 180, 300, (), (Cut(1, 299),)),), (0,)))
    direct.collect()
    direct.prefill(1)
    assert direct.sampled[1] == []
    direct.close(1, [Kept(1, 0, 299)], None)
    direct.open(2, prompt, [Stored(1, 0, 299)], 1)
    finish(direct, model, 2)
    assert worst_error(model, beside, direct.answer(0)) <= TOLERANCE


def test_a_step_of_nothing_but_background_prefill(model: GptOss) -> None:
    prompt = random_ids(Random(13), 60)
    direct = Direct(model)
    direct.open(0, prompt, submit=Submit(0, prompt, 0, [], Sampling()))
    direct.prefill(0)
    assert direct.sampled[0] == []


def test_ids_are_used_once_and_freed_once(model: GptOss) -> None:
    direct = Direct(model)
    keep_prompt(direct, random_ids(Random(14), 60), 50)
    for edit in (FreeSpan(2), FreeWindow(2), Split(2, 3, 1)):
        with pytest.raises(KeyError):
            direct.runner.apply(edit)
    direct.open(1, [5] * 20)
    direct.prefill(1)
    with pytest.raises(AssertionError):
        direct.runner.launch(Plan((Prefill(1, 0, 5),)))
    direct.runner.apply(FreeSpan(1))
    direct.runner.apply(FreeWindow(1))
    with pytest.raises(KeyError):
        direct.runner.apply(FreeSpan(1))


def test_a_row_never_outgrows_its_place(model: GptOss) -> None:
    """The scheduler moves it before."""
    direct = Direct(model)
    direct.open(0, random_ids(Random(15), 250), room=6)
    direct.prefill(0)
    direct.decode([0], 6)
    with pytest.raises(AssertionError):
        direct.runner.launch(Plan(decodes=(0,)))


def test_a_fingerprint_tells_models_apart() -> None:
    one, same, other = (runner_of(random_gpt_oss(seed=seed)) for seed in (1, 1, 2))
    wide = runner_of(random_gpt_oss(seed=1, width=128))
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, wide.fingerprint}) == 3
