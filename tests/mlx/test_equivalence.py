"""The equivalence gate: a row in any batch computes what it computes alone.

Float32 and teacher-forced: whatever is sampled, each row is fed given ids, and the logits that
the runner would have sampled from are compared with one cold forward of mlx-lm's own model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tests.mlx.harness import (
    HELLO,
    cold_logits,
    play,
    random_gpt_oss,
    random_ids,
    runner_of,
    scheduler_of,
)
from verger.engine.device.sampling import RowSampler, Sample, Sampler
from verger.messages import Sampling, Submit

pytestmark = pytest.mark.mlx

TOLERANCE = 1e-3
CLEAR_GAP = 2e-3
"""The same best id is required where the reference's two best are further apart than this."""
MAX_EXCUSED = 0.01


class ForcedSampler(Sampler):
    """Feeds each row the ids that its request's seed selects, and keeps the logits it saw."""

    def __init__(self, vocabulary_size: int, forced: dict[int, list[int]]) -> None:
        super().__init__(vocabulary_size, HELLO, Random(0))
        self._forced = forced
        self.seen: dict[int, list[mx.array]] = {request: [] for request in forced}

    def sample(
        self, logits: mx.array, rows: Sequence[RowSampler], positions: Sequence[int]
    ) -> Sample:
        ids = []
        for row, position, row_logits in zip(rows, positions, logits, strict=True):
            assert row.sampling.seed is not None
            self.seen[row.sampling.seed].append(row_logits)
            ids.append(self._forced[row.sampling.seed][position])
        return Sample(mx.array(ids), None)


@dataclass(frozen=True)
class Case:
    """Rows of (arrival step, prompt tokens, generated tokens), and the prefill budget."""

    rows: tuple[tuple[int, int, int], ...]
    prefill_tokens: int


CASES = {
    "alone, short": Case(((0, 5, 30),), 2048),
    "alone, wraps while decoding": Case(((0, 100, 60),), 2048),
    "alone, wrapped, in odd chunks": Case(((0, 700, 20),), 37),
    "chunks longer than a sliding query block": Case(((0, 1500, 10),), 1500),
    "equal rows": Case(tuple((0, 64, 24) for _ in range(8)), 512),
    "one long among short ones": Case((*((0, 40, 40) for _ in range(7)), (0, 900, 12)), 128),
    "joined late": Case(tuple((3 * i, 30 + 50 * i, 40) for i in range(10)), 96),
    "rows leave and others take their place": Case(
        tuple((2 * i, 20 + 17 * (i % 5), 4 + 9 * (i % 7)) for i in range(30)), 64
    ),
    "rows outgrow their block": Case(((0, 190, 80), (0, 200, 80), (5, 250, 10)), 512),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_in_a_batch_equal_those_of_the_row_alone(name: str) -> None:
    case = CASES[name]
    random = Random(name)
    model = random_gpt_oss(seed=1)
    prompts = {i: random_ids(random, row[1]) for i, row in enumerate(case.rows)}
    forced = {i: random_ids(random, row[2]) for i, row in enumerate(case.rows)}
    sampler = ForcedSampler(model.vocabulary_size, forced)
    runner = runner_of(model, sampler=sampler)
    scheduler = scheduler_of(runner, case.prefill_tokens, case.prefill_tokens)
    arrivals = [
        (row[0], Submit(i, prompts[i], row[2], [], Sampling(seed=i)))
        for i, row in enumerate(case.rows)
    ]
    play(runner, scheduler, arrivals)
    compared = excused = 0
    for i in prompts:
        assert len(sampler.seen[i]) == len(forced[i])
        got = mx.stack(sampler.seen[i])
        first = len(prompts[i]) - 1
        want = cold_logits(model, [*prompts[i], *forced[i]])[first : first + len(forced[i])]
        assert float(mx.abs(got - want).max()) <= TOLERANCE
        excused += disagreements(got, want)
        compared += len(forced[i])
    print(f"{name}: {excused} of {compared} positions excused")
    assert excused <= MAX_EXCUSED * compared


def disagreements(got: mx.array, want: mx.array) -> int:
    """How many best ids differ; fails where the reference's gap leaves no excuse."""
    best_two = mx.sort(want, axis=-1)[:, -2:]
    gap = best_two[:, 1] - best_two[:, 0]
    differs = mx.argmax(got, axis=-1) != mx.argmax(want, axis=-1)
    assert not bool((differs & (gap > CLEAR_GAP)).any())
    return int(differs.sum())


def test_fused_projections_hold_nothing_twice() -> None:
    """Query, key and value become one call; what mlx-lm's own model reads are views of it."""
    mx.clear_cache()
    before = mx.get_active_memory()
    model = random_gpt_oss(seed=9, width=512)
    held = mx.get_active_memory() - before
    leaves = dict(tree_flatten(model.reference.parameters())).values()
    weights = sum(array.nbytes for array in leaves if isinstance(array, mx.array))
    assert held < 1.05 * weights
