"""Turns episodes into training batches: rows of similar length, or rows behind one long prefix.

Called by `scripts.train_nano`. Knows ids and loss weights; must not know the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from scripts.nano import episodes
from scripts.nano.episodes import Episode
from verger.formats.harmony import render
from verger.formats.vocabulary import Vocabulary

PROMPT_WEIGHT = 0.05  # of a prompt's token in the loss, against 1.0 of a reply's token
MAX_ROW_TOKENS = 768
POOL_ROWS = 192  # rows that are sorted by length before they are cut into batches


@dataclass(frozen=True, slots=True)
class Row:
    """One rendered prompt with its reply; the reply starts at `reply_start`."""

    ids: list[int]
    reply_start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """`inputs`, `targets` (B, L) int64; `weights` (B, L), 0 on padding.

    `prefix` holds ids that precede every row and are only read, never trained on.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    prefix: tuple[int, ...] = ()


def make_row(episode: Episode, vocabulary: Vocabulary) -> Row:
    """The prompt as the server renders it, then the right reply."""
    prompt = render(episode.conversation, vocabulary).ids
    return Row([*prompt, *episodes.reply_ids(episode.reply, vocabulary)], len(prompt))


def short_batches(random: Random, vocabulary: Vocabulary, batch_tokens: int) -> Iterator[Batch]:
    """Endless batches of at most `batch_tokens` ids, padding included."""
    while True:
        rows: list[Row] = []
        while len(rows) < POOL_ROWS:
            row = make_row(episodes.random_episode(random, vocabulary), vocabulary)
            if len(row.ids) <= MAX_ROW_TOKENS:
                rows.append(row)
        batches = list(_cut(sorted(rows, key=lambda row: len(row.ids)), batch_tokens))
        random.shuffle(batches)
        for batch in batches:
            yield collate(batch, 0)


def long_batch(random: Random, vocabulary: Vocabulary, prefix_tokens: int, rows: int) -> Batch:
    """`rows` episodes that all go on from one conversation of about `prefix_tokens` ids."""
    base = episodes.long_conversation(random, vocabulary, prefix_tokens)
    longest = len(render(base, vocabulary).ids) + MAX_ROW_TOKENS
    made: list[Row] = []
    while len(made) < rows:
        row = make_row(episodes.random_episode(random, vocabulary, base), vocabulary)
        if len(row.ids) <= longest:
            made.append(row)
    shared = _common_length([row.ids for row in made])
    return collate(made, min(shared, *(row.reply_start - 1 for row in made)))


def collate(rows: list[Row], prefix: int) -> Batch:
    """Pads the rows behind their first `prefix` ids, which they share."""
    length = max(len(row.ids) for row in rows) - prefix - 1
    inputs = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids[prefix:])
        count = len(ids) - 1
        inputs[index, :count], targets[index, :count] = ids[:-1], ids[1:]
        weights[index, :count] = PROMPT_WEIGHT
        weights[index, row.reply_start - prefix - 1 : count] = 1.0
    return Batch(inputs, targets, weights, tuple(rows[0].ids[:prefix]))


def _cut(rows: list[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Consecutive groups of the sorted rows, each within the budget."""
    group: list[Row] = []
    for row in rows:
        if group and len(row.ids) * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(row)
    yield group


def _common_length(rows: list[list[int]]) -> int:
    shortest = min(map(len, rows))
    for index in range(shortest):
        if len({row[index] for row in rows}) > 1:
            return index
    return shortest
