"""Log-probabilities of sampled ids and of the most likely ones, for the rows that ask.

Called by sampling. Measured on the raw logits: what the model thinks, whatever bias, penalties,
temperature or cutoffs make of it. Must not know how ids are drawn. Only `resolve` evaluates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from verger.engine.device.selection import RowSubset, largest
from verger.messages import Logprob


@dataclass(frozen=True, slots=True)
class MeasuredLogprobs:
    """Still on the device. `top_counts` says how many of the `top_…` each of `rows` asked for."""

    rows: tuple[int, ...]
    top_counts: tuple[int, ...]
    sampled: mx.array
    """(rows, 1)"""
    top_ids: mx.array
    """(rows, the most that any row asked for), most likely first"""
    top_logprobs: mx.array

    def arrays(self) -> tuple[mx.array, ...]:
        """What to evaluate together with the ids."""
        return self.sampled, self.top_ids, self.top_logprobs

    def resolve(self) -> dict[int, Logprob]:
        """By row of the batch; waits for the device."""
        sampled = cast(list[list[float]], self.sampled.tolist())
        top_ids = cast(list[list[int]], self.top_ids.tolist())
        top_logprobs = cast(list[list[float]], self.top_logprobs.tolist())
        return {
            row: Logprob(sampled[place][0], top_ids[place][:count], top_logprobs[place][:count])
            for place, (row, count) in enumerate(zip(self.rows, self.top_counts, strict=True))
        }


class LogprobStage:
    """Which rows of a batch want logprobs and how many; None: none, 0: the sampled id's only."""

    def __init__(self, wanted: Sequence[int | None], vocabulary_size: int) -> None:
        self._subset = RowSubset.where([count is not None for count in wanted])
        self._top_counts = tuple(count for count in wanted if count is not None)
        self._most = min(max(self._top_counts, default=0), vocabulary_size)

    def measure(self, logits: mx.array, ids: mx.array) -> MeasuredLogprobs | None:
        """Of raw logits (B, vocabulary) and the sampled ids (B,)."""
        if not self._subset:
            return None
        raw = self._subset.take(logits).astype(mx.float32)
        total = mx.logsumexp(raw, axis=-1, keepdims=True)
        sampled = mx.take_along_axis(raw, self._subset.take(ids)[:, None], axis=-1)
        top, top_ids = largest(raw, self._most) if self._most else _none(raw.shape[0])
        return MeasuredLogprobs(
            rows=self._subset.rows,
            top_counts=self._top_counts,
            sampled=sampled - total,
            top_ids=top_ids,
            top_logprobs=top - total,
        )


def _none(rows: int) -> tuple[mx.array, mx.array]:
    return mx.zeros((rows, 0)), mx.zeros((rows, 0), mx.uint32)
