"""The oracle, and the proof that it sees: faults injected into the runner must all be caught.

A trained copier shrugs off a broken cache, so answers are no evidence. Log-probabilities are:
those that the runner reports are compared with a cold forward of mlx-lm's own model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import mlx.core as mx
import pytest

from tests.mlx.harness import (
    finished_of,
    play,
    random_gpt_oss,
    random_ids,
    runner_of,
    scheduler_of,
    tokens_of,
    worst_error,
)
from verger.engine.device import forward, runner, spans
from verger.engine.device.forward import DecodeGroup, Segment, Step
from verger.engine.device.kv import Block, KVStore
from verger.engine.device.model import GptOss, Layer
from verger.engine.device.runner import MlxRunner, Row
from verger.engine.steps import Prefill
from verger.messages import FinishReason, Sampling, Submit

pytestmark = pytest.mark.mlx

TOLERANCE = 1e-3
PROMPTS = (300, 150, 40, 420)
ANSWER_TOKENS = 24
SEEDS = (0, 1, 2)


def errors(model: GptOss, faulty: MlxRunner | None = None, seed: int = 0) -> list[float]:
    """The oracle's reading for four rows, windows wrapped and not, prefilled in chunks."""
    random = Random(seed)
    requests = [
        Submit(i, random_ids(random, n), ANSWER_TOKENS, [], Sampling(seed=i), logprobs=0)
        for i, n in enumerate(PROMPTS)
    ]
    played = faulty or runner_of(model)
    scheduler = scheduler_of(played, alone=100, beside=100)
    frames = play(played, scheduler, [(0, request) for request in requests])
    answers = [tokens_of(frames, i) for i in range(len(PROMPTS))]
    assert [len(answer.ids) for answer in answers] == [ANSWER_TOKENS] * len(PROMPTS)
    return [
        worst_error(model, request.prompt, answer)
        for request, answer in zip(requests, answers, strict=True)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_runner_passes_the_oracle(seed: int) -> None:
    assert max(errors(random_gpt_oss(seed), seed=seed)) <= TOLERANCE


Fault = Callable[[pytest.MonkeyPatch, GptOss], MlxRunner | None]


def lost_window(patch: pytest.MonkeyPatch, model: GptOss) -> None:
    """Each prefill chunk starts as if nothing came before, in the sliding layers."""

    def prefill(
        store: KVStore, layer: Layer, index: int, segment: Segment, *qkv: mx.array
    ) -> mx.array:
        store.ring.keys[index][segment.row.ring_row] = 0
        store.ring.values[index][segment.row.ring_row] = 0
        return sound(store, layer, index, segment, *qkv)

    sound = forward.prefill_sliding
    patch.setattr(forward, "prefill_sliding", prefill)


def halved_window(patch: pytest.MonkeyPatch, model: GptOss) -> None:
    """Decoding rows see half of the window."""

    def group(
        block: Block, rows: Sequence[int], positions: Sequence[int], start: int
    ) -> DecodeGroup:
        made = sound(block, rows, positions, start)
        if block.capacity != model.window:
            return made
        half = mx.arange(made.length) % 2 == 0
        seen = mx.broadcast_to(half, (made.extent, 1, 1, made.length))
        return replace(made, mask=seen if made.mask is None else made.mask & seen)

    sound = forward.decode_group
    patch.setattr(runner, "decode_group", group)


def shifted_window(patch: pytest.MonkeyPatch, model: GptOss) -> None:
    """A chunk's window is taken one position too early."""
    sound = spans.ring_indices
    patch.setattr(forward, "ring_indices", lambda a, b, w: sound(a - 1, b - 1, w))
    inner = forward.prefill_sliding

    def prefill(
        store: KVStore, layer: Layer, index: int, segment: Segment, *qkv: mx.array
    ) -> mx.array:
        out = inner(store, layer, index, segment, *qkv)
        ring, row = store.ring, segment.row.ring_row
        ring.keys[index][row] = mx.roll(ring.keys[index][row], 1, 1)
        ring.values[index][row] = mx.roll(ring.values[index][row], 1, 1)
        return out

    patch.setattr(forward, "prefill_sliding", prefill)


def hole_in_the_kv(patch: pytest.MonkeyPatch, model: GptOss) -> None:
    """Eight positions of every prompt are missing in the full-attention layers."""

    def prefill(
        store: KVStore, layer: Layer, index: int, segment: Segment, *qkv: mx.array
    ) -> mx.array:
        out = sound(store, layer, index, segment, *qkv)
        segment.row.block.values[index][segment.row.block_row, :, 16:24] = 0
        return out

    sound = forward.prefill_full
    patch.setattr(forward, "prefill_full", prefill)


class RopeOffByOne(MlxRunner):
    """Decoded tokens sit one position too far from their prompt."""

    def _layout(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> Step:
        step = super()._layout(decoding, prefills)
        is_decoded = mx.arange(step.positions.size) < len(decoding)
        return replace(step, positions=step.positions + is_decoded)


class SwappedRows(MlxRunner):
    """From the tenth step on two rows decode on each other's KV."""

    def _layout(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> Step:
        if len(decoding) == len(PROMPTS) and decoding[0].sampled == 10:
            a, b = decoding[0].kv, decoding[1].kv
            a.ring_row, b.ring_row = b.ring_row, a.ring_row
        return super()._layout(decoding, prefills)


def rope_off_by_one(patch: pytest.MonkeyPatch, model: GptOss) -> MlxRunner:
    return RopeOffByOne(model, runner_of(model)._sampler, 16)


def swapped_rows(patch: pytest.MonkeyPatch, model: GptOss) -> MlxRunner:
    return SwappedRows(model, runner_of(model)._sampler, 16)


def no_sinks(patch: pytest.MonkeyPatch, model: GptOss) -> MlxRunner:
    """Attention without its learned sinks."""
    layers = tuple(replace(layer, sinks=mx.full(layer.sinks.shape, -1e9)) for layer in model.layers)
    return runner_of(replace(model, layers=layers))


def stale_snapshot(patch: pytest.MonkeyPatch, model: GptOss) -> None:
    """The window stays what it was before the last chunk of a prompt."""

    def prefill(
        store: KVStore, layer: Layer, index: int, segment: Segment, *qkv: mx.array
    ) -> mx.array:
        ring, row = store.ring, segment.row.ring_row
        before = ring.keys[index][row] + 0, ring.values[index][row] + 0
        out = sound(store, layer, index, segment, *qkv)
        if qkv[0].shape[2] < 100:
            ring.keys[index][row], ring.values[index][row] = before
        return out

    sound = forward.prefill_sliding
    patch.setattr(forward, "prefill_sliding", prefill)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        lost_window,
        halved_window,
        shifted_window,
        hole_in_the_kv,
        rope_off_by_one,
        swapped_rows,
        no_sinks,
        stale_snapshot,
    )
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_the_oracle_catches(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gpt_oss(seed)
    caught = max(errors(model, FAULTS[name](monkeypatch, model), seed))
    print(f"{name}, seed {seed}: off by {caught:.3f}")
    assert caught > 10 * TOLERANCE


def test_a_token_computed_after_a_stop_leaves_no_trace() -> None:
    """The step launched ahead writes into a row that has stopped; whoever takes the row next,
    and whoever runs beside it, must not notice."""
    model = random_gpt_oss(seed=5)
    random = Random(5)
    first = Submit(0, random_ids(random, 60), 40, list(range(512)), Sampling(seed=0), logprobs=0)
    beside = Submit(1, random_ids(random, 90), 30, [], Sampling(seed=1), logprobs=0)
    after = Submit(2, random_ids(random, 30), 30, [], Sampling(seed=2), logprobs=0)
    small = runner_of(model, max_rows=2)
    frames = play(small, scheduler_of(small), [(0, first), (0, beside), (0, after)])
    finished = finished_of(frames)
    assert finished[0].reason is FinishReason.STOP
    assert finished[0].completion_tokens == 1
    for request in (first, beside, after):
        answer = tokens_of(frames, request.request_id)
        assert worst_error(model, request.prompt, answer) <= TOLERANCE
