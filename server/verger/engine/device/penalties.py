"""What moves the logits of single ids: penalties for what was generated, and logit_bias.

Called by sampling. Sparse: only counted or biased ids are read and written, never a vocabulary.
Must not know Harmony beyond which ids are special. Nothing is evaluated here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from verger.messages import Sampling


@dataclass(slots=True)
class ContentCounts:
    """How often a row has generated each id as content.

    Content is what follows <|message|>, up to the next special id: headers are never counted,
    since a model that is penalised for writing them stops speaking Harmony.
    """

    message_id: int
    special_ids: frozenset[int]
    counts: Counter[int] = field(default_factory=Counter)
    is_content: bool = False

    def observe(self, token: int) -> None:
        """Take note of the next generated id."""
        if token in self.special_ids:
            self.is_content = token == self.message_id
        elif self.is_content:
            self.counts[token] += 1


@dataclass(frozen=True, slots=True)
class PenalisedRow:
    """A row of a batch, what it is penalised with, and for what."""

    place: int
    sampling: Sampling
    counts: Counter[int]


def penalise(logits: mx.array, rows: Sequence[PenalisedRow]) -> mx.array:
    """Float32 logits (B, vocabulary) with the penalties of `rows` applied.

    Repetition first (CTRL, arXiv 1909.05858: a positive logit is divided, a negative one
    multiplied), then OpenAI's `count * frequency + presence` is subtracted.
    """
    sizes = [len(row.counts) for row in rows]
    if not any(sizes):
        return logits

    def per_id(values: Sequence[float]) -> mx.array:
        return mx.array(np.repeat(np.array(values, np.float32), sizes))

    places = per_id([row.place for row in rows]).astype(mx.int32)
    ids = mx.array([token for row in rows for token in row.counts], mx.int32)
    counts = mx.array([count for row in rows for count in row.counts.values()], mx.float32)
    repetition = per_id([row.sampling.repetition_penalty for row in rows])
    frequency = per_id([row.sampling.frequency_penalty for row in rows])
    presence = per_id([row.sampling.presence_penalty for row in rows])

    values = logits[places, ids]
    repeated = mx.where(values > 0, values / repetition, values * repetition)
    return logits.at[places, ids].add(repeated - values - counts * frequency - presence)


class Biases:
    """logit_bias of the rows of one batch, prepared once for all its steps."""

    def __init__(self, biases: Sequence[Mapping[int, float]]) -> None:
        self._is_empty = not any(biases)
        self._rows = mx.array([row for row, bias in enumerate(biases) for _ in bias], mx.int32)
        self._ids = mx.array([token for bias in biases for token in bias], mx.int32)
        self._values = mx.array([v for bias in biases for v in bias.values()], mx.float32)

    def __bool__(self) -> bool:
        return not self._is_empty

    def add(self, logits: mx.array) -> mx.array:
        """Float32 logits (B, vocabulary) plus the biases."""
        return logits.at[self._rows, self._ids].add(self._values)
