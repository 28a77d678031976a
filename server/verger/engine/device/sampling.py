"""From logits to ids: one vectorised pass over all rows of a step.

Called by the runner, on its one thread. Must not know the model, the KV or Harmony's headers.

    raw logits ─► penalties ─► logit_bias ─┬─► (greedy rows) ──────────────────────────► argmax
         │                                 └─► top_k ─► top_p ─► min_p ─► + T · Gumbel ─► argmax
         └─► logprobs of the rows that ask

A stage runs over the rows that use it and is not built at all if none does: a greedy batch is one
argmax. Nothing is evaluated, so the next step can be launched from ids still on the device.

Drawing is the Gumbel-max trick: argmax(logits / T + G) is a sample of softmax(logits / T). The
noise is a pure function of (seed, choice, position), so a seeded row draws the same noise alone,
in any batch, at any place, and when an interrupted run is resumed. Temperature is applied as
argmax(logits + T · G), and inside the cutoffs (see there), which never moves their order.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

import mlx.core as mx

from verger.engine.device.cutoffs import Cutoffs
from verger.engine.device.logprobs import LogprobStage, MeasuredLogprobs
from verger.engine.device.penalties import (
    Biases,
    ContentCounts,
    PenalisedRow,
    penalise,
)
from verger.engine.device.selection import RowSubset, column
from verger.engine.steps import has_penalties
from verger.messages import Hello, Logprob, Sampling, Submit

MIN_TEMPERATURE = 1e-5
"""Below this a draw is the best id up to rounding; such rows are greedy."""
SMALLEST_UNIFORM = 2.0**-32
"""Keeps the noise finite: an id that is the only one left must not tie with those cut off."""


@dataclass(frozen=True, slots=True, eq=False)
class RowSampler:
    """One row's parameters, fixed when it opens, and the ids it has generated."""

    sampling: Sampling
    logprobs: int | None
    key: tuple[int, int]
    """The row's random stream; its low half advances with the position."""
    bias: dict[int, float]
    content: ContentCounts

    @property
    def is_greedy(self) -> bool:
        """Whether the row takes its best id, without noise."""
        return self.sampling.temperature < MIN_TEMPERATURE

    @property
    def needs_observed(self) -> bool:
        """Whether every id must be observed before the next one is sampled."""
        return has_penalties(self.sampling)

    def observe(self, token: int) -> None:
        """Take note of an id that this row has generated."""
        if self.needs_observed:
            self.content.observe(token)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a step sampled, parallel to its rows; still on the device until resolved."""

    ids: mx.array
    logprobs: MeasuredLogprobs | None

    def arrays(self) -> tuple[mx.array, ...]:
        """What to evaluate."""
        return (self.ids,) if self.logprobs is None else (self.ids, *self.logprobs.arrays())

    def resolve(self) -> tuple[list[int], list[Logprob | None]]:
        """The ids, and the logprobs of the rows that asked; waits for the device."""
        ids = cast(list[int], self.ids.tolist())
        by_row = {} if self.logprobs is None else self.logprobs.resolve()
        return ids, [by_row.get(row) for row in range(len(ids))]


class Sampler:
    """Opens rows and samples for batches of them."""

    def __init__(self, vocabulary_size: int, hello: Hello, random: Random) -> None:
        self._vocabulary_size = vocabulary_size
        self._message_id = hello.message_id
        self._special_ids = frozenset([hello.message_id, *hello.special_ids])
        self._random = random
        self._batch = _Batch((), vocabulary_size)
        """The last step's rows; most steps have the same, and then nothing is prepared again."""

    def open(self, submit: Submit) -> RowSampler:
        """A row's sampler; ids that an interrupted run generated count as observed."""
        sampling = submit.sampling
        seed = self._random.getrandbits(64) if sampling.seed is None else sampling.seed
        row = RowSampler(
            sampling=sampling,
            logprobs=submit.logprobs,
            key=_stream_key(seed, sampling.choice),
            # An id beyond the vocabulary is never sampled, and writing there is undefined.
            bias={t: v for t, v in sampling.logit_bias.items() if 0 <= t < self._vocabulary_size},
            content=ContentCounts(self._message_id, self._special_ids),
        )
        for token in submit.prompt[len(submit.prompt) - submit.resumed_tokens :]:
            row.observe(token)
        return row

    def sample(
        self, logits: mx.array, rows: Sequence[RowSampler], positions: Sequence[int]
    ) -> Sample:
        """One id per row from logits (B, vocabulary) of any float type; does not evaluate.

        `positions` count each request's generated ids, those before a resumption included.
        """
        if self._batch.rows != tuple(rows):
            self._batch = _Batch(tuple(rows), self._vocabulary_size)
        return self._batch.sample(logits, positions)


class _Batch:
    """The parameters of some rows, as arrays, valid until a row joins or leaves."""

    def __init__(self, rows: tuple[RowSampler, ...], vocabulary_size: int) -> None:
        self.rows = rows
        self._penalised = tuple(
            PenalisedRow(place, row.sampling, row.content.counts)
            for place, row in enumerate(rows)
            if row.needs_observed
        )
        self._biases = Biases([row.bias for row in rows])
        self._drawn = RowSubset.where([not row.is_greedy for row in rows])
        samplings = [rows[place].sampling for place in self._drawn.rows]
        self._cutoffs = Cutoffs(samplings, vocabulary_size)
        self._temperature = column([s.temperature for s in samplings])
        self._logprobs = LogprobStage([row.logprobs for row in rows], vocabulary_size)

    def sample(self, logits: mx.array, positions: Sequence[int]) -> Sample:
        """All stages, in the order of the module's diagram."""
        adjusted = logits
        if self._penalised or self._biases:
            adjusted = logits.astype(mx.float32)
        if self._penalised:
            adjusted = penalise(adjusted, self._penalised)
        if self._biases:
            adjusted = self._biases.add(adjusted)
        ids = self._choose(adjusted, positions)
        return Sample(ids, self._logprobs.measure(logits, ids))

    def _choose(self, logits: mx.array, positions: Sequence[int]) -> mx.array:
        """Ids (B,): the best of greedy rows, a draw for the others."""
        if not self._drawn:
            return mx.argmax(logits, axis=-1)
        drawn = self._draw(self._drawn.take(logits).astype(mx.float32), positions)
        if self._drawn.index is None:
            return drawn
        ids = mx.argmax(logits, axis=-1)
        ids[self._drawn.index] = drawn
        return ids

    def _draw(self, logits: mx.array, positions: Sequence[int]) -> mx.array:
        """Ids of the rows that are not greedy, from their float32 logits."""
        keys = [_key_at(self.rows[place].key, positions[place]) for place in self._drawn.rows]
        noise = _gumbel(mx.array(keys, mx.uint32), logits.shape[-1])
        return mx.argmax(self._cutoffs.apply(logits) + self._temperature * noise, axis=-1)


def _stream_key(seed: int, choice: int) -> tuple[int, int]:
    """Where a row's random stream starts, two 32-bit halves; neighbouring seeds lie far apart."""
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    high, low = struct.unpack("<II", digest)
    return high, low


def _key_at(key: tuple[int, int], position: int) -> tuple[int, int]:
    """The key of one position; MLX's generator, Threefry, makes unrelated bits of near keys."""
    high, low = key
    return high, (low + position) % 2**32


def _gumbel(keys: mx.array, size: int) -> mx.array:
    """Finite standard Gumbel noise (rows, size), each row a function of its key (2,) alone."""

    def uniform(key: mx.array) -> mx.array:
        return mx.random.uniform(SMALLEST_UNIFORM, 1, (size,), key=key)

    return -mx.log(-mx.log(mx.vmap(uniform)(keys)))
