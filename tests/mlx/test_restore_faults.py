"""The oracle sees what can go wrong with a restored row: every injected fault must be caught.

A prefix is restored at a checkpoint inside a prompt, then at the end of an answer whose window was
cut while a step was under way, then at an early checkpoint, from the row restored before. The last
shows positions that are all there but in another order: attention to all of them would not notice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import mlx.core as mx
import pytest

from tests.mlx.direct import Direct
from tests.mlx.harness import random_gpt_oss, random_ids, runner_of, worst_error
from verger.engine.device import forward, held, spans
from verger.engine.device.forward import Step, WindowCut
from verger.engine.device.held import HeldKV
from verger.engine.device.kv import KVStore, RowKV
from verger.engine.device.model import GptOss
from verger.engine.device.runner import MlxRunner, Row
from verger.engine.device.spans import Piece
from verger.engine.steps import Cut, Kept, Plan, Prefill, Running, Stored

pytestmark = pytest.mark.mlx

TOLERANCE = 1e-3
CHECKPOINT = 220
SPLIT = 110
EARLY = 50
CHUNK = 150
OTHER_WINDOW, STALE_WINDOW, WINDOW, END_WINDOW, EARLY_WINDOW = 1, 2, 3, 4, 5
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Scene:
    """What is restored at the checkpoint, and by which runner."""

    runner: MlxRunner
    sources: tuple[Stored | Running, ...] = (Stored(1, 0, SPLIT), Stored(2, SPLIT, CHECKPOINT))
    window_id: int = WINDOW


def worst(model: GptOss, scene: Scene, seed: int) -> float:
    """The oracle's worst reading for the restored rows."""
    random = Random(seed)
    direct = Direct(scene.runner)
    prompt, other = random_ids(random, 240), random_ids(random, 240)
    direct.open(0, other)
    direct.prefill(0, cuts=[Cut(OTHER_WINDOW, CHECKPOINT)])
    direct.open(1, prompt)
    cuts = [Cut(EARLY_WINDOW, EARLY), Cut(STALE_WINDOW, 180), Cut(WINDOW, CHECKPOINT)]
    direct.prefill(1, chunk=CHUNK, cuts=cuts)
    direct.close(1, [Kept(1, 0, SPLIT), Kept(2, SPLIT, CHECKPOINT)])
    direct.open(2, prompt, scene.sources, scene.window_id)
    at_checkpoint = _finish(model, direct, 2)
    end = direct.length[2]
    direct.launch(Plan(decodes=(2,)))
    direct.close(2, [Kept(3, 0, end)], Cut(END_WINDOW, end))
    direct.collect()
    said = [*prompt, *direct.answer(2).ids[:8], *random_ids(random, 20)]
    direct.open(3, said, [Stored(3, 0, end)], END_WINDOW)
    at_end = _finish(model, direct, 3)
    direct.open(4, prompt[: EARLY + 20], [Running(3, 0, EARLY)], EARLY_WINDOW)
    return max(at_checkpoint, at_end, _finish(model, direct, 4))


def _finish(model: GptOss, direct: Direct, request_id: int) -> float:
    direct.prefill(request_id)
    direct.decode([request_id], 8)
    return worst_error(model, direct.submits[request_id].prompt, direct.answer(request_id))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_restore_passes_the_oracle(seed: int) -> None:
    model = random_gpt_oss(seed)
    assert worst(model, Scene(runner_of(model)), seed) <= TOLERANCE


Fault = Callable[[pytest.MonkeyPatch, Scene], Scene]


def window_shifted(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    """Written one position too late."""

    def fill(store: KVStore, row: RowKV, at: int, window: Piece) -> None:
        layers = [mx.roll(layer, 1, 2) for layer in window.layers]
        spans.fill_ring(store, row, at, replace(window, layers=layers))

    patch.setattr(held, "fill_ring", fill)
    return scene


def window_of_another_prefix(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    return replace(scene, window_id=OTHER_WINDOW)


def window_without_a_layer(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    def fill(store: KVStore, row: RowKV, at: int, window: Piece) -> None:
        layers = [window.layers[0] * 0, *window.layers[1:]]
        spans.fill_ring(store, row, at, replace(window, layers=layers))

    patch.setattr(held, "fill_ring", fill)
    return scene


def stale_window(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    """Of an earlier checkpoint of the same prompt."""
    return replace(scene, window_id=STALE_WINDOW)


def window_not_restored(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    """The row goes on with what its predecessor left in the ring."""
    patch.setattr(held, "fill_ring", lambda store, row, at, window: None)
    return scene


def chunk_cut_a_position_early(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    def cut(cut: WindowCut, keys: mx.array, values: mx.array, first: int) -> None:
        sound(replace(cut, at=cut.at - (1 if cut.at > EARLY else 0)), keys, values, first)

    sound = forward.cut_chunk
    patch.setattr(forward, "cut_chunk", cut)
    return scene


def ring_cut_with_the_position_ahead(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    """The window at the end of an answer is the one after the step launched ahead."""
    patch.setattr(held, "cut_ring", lambda store, row, at: spans.cut_ring(store, row, row.length))
    return scene


def hole_in_a_span(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    """Eight positions are missing in one layer."""

    def take(piece: Piece, layer: int) -> mx.array:
        both = sound(piece, layer)
        if layer == 1:
            both[:, :, 16:24] = 0
        return both

    sound = Piece.take
    patch.setattr(Piece, "take", take)
    return scene


def span_shifted(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    sound = Piece.take
    patch.setattr(Piece, "take", lambda piece, layer: mx.roll(sound(piece, layer), 1, 2))
    return scene


def spans_swapped(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    return replace(scene, sources=(Stored(2, 0, SPLIT), Stored(1, SPLIT, CHECKPOINT)))


def keys_for_values(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    sound = Piece.take
    patch.setattr(Piece, "take", lambda piece, layer: sound(piece, layer)[::-1])
    return scene


def layers_swapped(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    patch.setattr(Piece, "take", lambda piece, layer: piece.layers[1 - layer])
    return scene


def last_source_dropped(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    def fill(
        kv: HeldKV,
        row: RowKV,
        sources: Sequence[Stored | Running],
        layers: range,
        row_of: held.RowOf,
    ) -> None:
        sound(kv, row, sources[:-1], layers, row_of)

    sound = HeldKV._fill
    patch.setattr(HeldKV, "_fill", fill)
    return scene


def copied_from_another_row(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    return replace(scene, sources=(Running(0, 0, SPLIT), Stored(2, SPLIT, CHECKPOINT)))


class PositionsTooFar(MlxRunner):
    """What is prefilled behind a restored prefix sits one position too far from it."""

    def _layout(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> Step:
        step = super()._layout(decoding, prefills)
        is_restored = any(prefill.start > CHUNK for prefill in prefills)
        return replace(step, positions=step.positions + 1) if is_restored else step


class TokenSkipped(MlxRunner):
    """A restored row counts one position more than it has."""

    def launch(self, plan: Plan) -> None:
        for prefill in plan.prefills:
            row = self._rows[prefill.request_id].kv
            if row.restored and row.length == row.restored:
                row.length += 1
                plan = Plan((replace(prefill, start=prefill.start + 1),))
        super().launch(plan)


def positions_too_far(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    model = scene.runner._model
    return replace(scene, runner=PositionsTooFar(model, scene.runner._sampler, 16))


def token_skipped(patch: pytest.MonkeyPatch, scene: Scene) -> Scene:
    model = scene.runner._model
    return replace(scene, runner=TokenSkipped(model, scene.runner._sampler, 16))


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        window_shifted,
        window_of_another_prefix,
        window_without_a_layer,
        stale_window,
        window_not_restored,
        chunk_cut_a_position_early,
        ring_cut_with_the_position_ahead,
        hole_in_a_span,
        span_shifted,
        spans_swapped,
        keys_for_values,
        layers_swapped,
        last_source_dropped,
        copied_from_another_row,
        positions_too_far,
        token_skipped,
    )
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_the_oracle_catches(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gpt_oss(seed)
    scene = FAULTS[name](monkeypatch, Scene(runner_of(model)))
    caught = worst(model, scene, seed)
    print(f"{name}, seed {seed}: off by {caught:.3f}")
    assert caught > 10 * TOLERANCE
