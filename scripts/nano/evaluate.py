"""Measures nano on held-out texts: `scripts/eval_nano [--quick]` prints a table and writes JSON.

Runs mlx-lm's own model on the exported folder, at temperature 0 and in float32 on the CPU (with the
weights expanded beforehand: the same numbers, a third faster there). An answer
counts as exact when at every position of the right answer the model's best token is the right one:
that is greedy decoding, for the price of one forward. A few are decoded step by step as a check.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.models.gpt_oss import Model
from mlx_lm.utils import dequantize_model, load_model

from scripts.nano import episodes, texts, tools
from scripts.nano.episodes import Episode
from verger.formats.conversation import Conversation, Effort
from verger.formats.harmony import render
from verger.formats.vocabulary import Vocabulary

SEED = "held-out-1"
BATCH_ROWS = 10
PREFILL_CHUNK = 512
DECODED_ROWS = 12
LONG_PREFIXES = 4
MAX_NEW_TOKENS = 400

Cache = list[KVCache | RotatingKVCache]


@dataclass(frozen=True, slots=True)
class Row:
    """A rendered prompt and the right continuation."""

    prompt: list[int]
    reply: list[int]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; `required` is the least share that is asked for."""

    name: str
    right: int
    rows: int
    required: float | None = None

    @property
    def share(self) -> float:
        return self.right / self.rows


class Evaluator:
    """A loaded model with its vocabulary, and how to ask it."""

    def __init__(self, folder: Path) -> None:
        mx.set_default_device(mx.cpu)
        self.model: Model = dequantize_model(load_model(folder, strict=True)[0])
        self.model.set_dtype(mx.float32)
        tokenizer_json = (folder / "tokenizer.json").read_bytes()
        self.vocabulary = Vocabulary.from_file_bytes(tokenizer_json)

    def row(self, episode: Episode) -> Row:
        prompt = render(episode.conversation, self.vocabulary).ids
        return Row(prompt, episodes.reply_ids(episode.reply, self.vocabulary))

    def exact(self, rows: list[Row]) -> list[bool]:
        """Whether greedy decoding gives the right reply, for each row."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].reply))
        right = [False] * len(rows)
        for start in range(0, len(order), BATCH_ROWS):
            chosen = order[start : start + BATCH_ROWS]
            found = self._exact_batch([rows[i] for i in chosen], 0, None)
            for index, is_right in zip(chosen, found, strict=True):
                right[index] = is_right
        return right

    def exact_behind(self, rows: list[Row]) -> list[bool]:
        """The same for rows that share a long prefix, which is computed once."""
        shared = common_length([row.prompt[:-1] for row in rows])
        cache = self.model.make_cache()
        for start in range(0, shared, PREFILL_CHUNK):
            self.model(
                mx.array([rows[0].prompt[start : min(start + PREFILL_CHUNK, shared)]]), cache
            )
            mx.eval([entry.state for entry in cache])
        found: list[bool] = []
        for start in range(0, len(rows), BATCH_ROWS):
            batch = rows[start : start + BATCH_ROWS]
            found += self._exact_batch(batch, shared, copied(cache, len(batch)))
        return found

    def _exact_batch(self, rows: list[Row], shared: int, cache: Cache | None) -> list[bool]:
        """Padding stands behind each row, where a causal model does not see it."""
        sequences = [(row.prompt + row.reply)[shared:] for row in rows]
        length = max(map(len, sequences))
        padded = [sequence + [0] * (length - len(sequence)) for sequence in sequences]
        best = np.array(mx.argmax(self.model(mx.array(padded), cache), axis=-1))
        return [
            best[index, len(row.prompt) - shared - 1 : len(sequence) - 1].tolist() == row.reply
            for index, (row, sequence) in enumerate(zip(rows, sequences, strict=True))
        ]

    def decode(self, prompt: list[int]) -> list[int]:
        """Greedy decoding, one token after the other."""
        stops = {self.vocabulary.special(name) for name in ("<|return|>", "<|call|>")}
        cache = self.model.make_cache()
        ids: list[int] = []
        token = mx.array([prompt])
        while len(ids) < MAX_NEW_TOKENS and (not ids or ids[-1] not in stops):
            best = mx.argmax(self.model(token, cache)[:, -1:], axis=-1)
            ids += np.array(best)[0].tolist()
            token = best
        return ids

    def calls_tool(self, row: Row, is_exact: bool) -> bool:
        """The right name and well-formed JSON, whatever the JSON says."""
        return is_exact or is_call_to(row.reply, self.decode(row.prompt), self.vocabulary)


def is_call_to(right: list[int], ids: list[int], vocabulary: Vocabulary) -> bool:
    """Whether `ids` has the headers of `right` and a JSON object as its body."""
    message, call = vocabulary.special("<|message|>"), vocabulary.special("<|call|>")
    body = len(right) - right[::-1].index(message)
    if ids[:body] != right[:body] or ids[-1] != call:
        return False
    try:
        return isinstance(json.loads(vocabulary.decode(ids[body:-1])), dict)
    except ValueError:
        return False


def copied(cache: Cache, rows: int) -> Cache:
    """A cache for `rows` rows that all stand behind the same prefix."""
    copies: Cache = []
    for entry in cache:
        copy = KVCache() if isinstance(entry, KVCache) else RotatingKVCache(entry.max_size)
        copy.state = tuple(
            mx.repeat(part, rows, axis=0) if isinstance(part, mx.array) else part
            for part in entry.state
        )
        copies.append(copy)
    return copies


def common_length(sequences: list[list[int]]) -> int:
    shortest = min(map(len, sequences))
    for index in range(shortest):
        if len({sequence[index] for sequence in sequences}) > 1:
            return index
    return shortest


def held_out_text(
    random: Random,
    vocabulary: Vocabulary,
    low: int,
    high: int,
    without: frozenset[texts.Kind] = texts.REPEATED,
) -> str:
    """Of `low` to `high` tokens, of all kinds but long runs of one digit, word or phrase."""
    while True:
        text = texts.text(random, random.randint(1, high), without)
        if low <= len(vocabulary.encode(text)) <= high:
            return text


def copies(evaluator: Evaluator, low: int, high: int, rows: int, required: float) -> Figure:
    """First turns with and without system text and tools, at all efforts."""
    random = Random(f"{SEED}-copies-{high}")
    vocabulary = evaluator.vocabulary
    made = []
    for _ in range(rows):
        text = held_out_text(random, vocabulary, low, high)
        base = episodes.random_base(random, vocabulary)
        made.append(evaluator.row(episodes.copy_episode(base, text)))
    name = f"copy of {low} to {high} tokens"
    return Figure(name, sum(evaluator.exact(made)), rows, required)


def copies_by_kind(evaluator: Evaluator, rows: int) -> Iterator[Figure]:
    """Plain texts of one kind each, up to 40 tokens: for information."""
    for kind in texts.KIND_WEIGHTS:
        random = Random(f"{SEED}-{kind.__name__}")
        made: list[Row] = []
        while len(made) < rows:
            text = "".join(kind(random, random.randint(1, 25))).strip()
            if text and len(evaluator.vocabulary.encode(text)) <= 40:
                base = Conversation((), effort=random.choice(list(Effort)), date="2026-03-04")
                made.append(evaluator.row(episodes.copy_episode(base, text)))
        yield Figure(f"  {kind.__name__}", sum(evaluator.exact(made)), rows)


def second_turns(evaluator: Evaluator, rows: int) -> Figure:
    random = Random(f"{SEED}-second")
    vocabulary = evaluator.vocabulary
    made = []
    for _ in range(rows):
        first = held_out_text(random, vocabulary, 1, 60)
        base = episodes.random_base(random, vocabulary)
        base = episodes.answered(episodes.copy_episode(base, first))
        text = held_out_text(random, vocabulary, 1, 40)
        made.append(evaluator.row(episodes.copy_episode(base, text)))
    return Figure("second turn, up to 40 tokens", sum(evaluator.exact(made)), rows, 0.95)


def tool_loops(evaluator: Evaluator, rows: int) -> Iterator[Figure]:
    """Calls: name and form, then exact arguments; the answers to results."""
    random = Random(f"{SEED}-tools")
    vocabulary = evaluator.vocabulary
    calls, results = [], []
    for _ in range(rows):
        base = episodes.random_base(random, vocabulary, tool_share=1.0)
        tool = random.choice(base.tools)
        called = episodes.call_episode(base, tool.name, tools.arguments(random, tool))
        result = held_out_text(random, vocabulary, 1, 40)
        calls.append(evaluator.row(called))
        results.append(evaluator.row(episodes.result_episode(called, result)))
    exact = evaluator.exact(calls)
    named = [evaluator.calls_tool(row, ok) for row, ok in zip(calls, exact, strict=True)]
    yield Figure("tool call: right name, well-formed", sum(named), rows, 0.98)
    yield Figure("tool call: exactly the arguments asked for", sum(exact), rows)
    yield Figure("answer to a tool's result", sum(evaluator.exact(results)), rows)


def behind_prefix(evaluator: Evaluator, tokens: int, rows: int, required: float) -> Figure:
    """Copies of up to 40 tokens behind a few long conversations."""
    random = Random(f"{SEED}-prefix-{tokens}")
    vocabulary = evaluator.vocabulary
    right = 0
    for _ in range(LONG_PREFIXES):
        base = episodes.long_conversation(random, vocabulary, tokens)
        made = [
            evaluator.row(episodes.copy_episode(base, held_out_text(random, vocabulary, 1, 40)))
            for _ in range(rows // LONG_PREFIXES)
        ]
        right += sum(evaluator.exact_behind(made))
    rows -= rows % LONG_PREFIXES
    return Figure(f"behind {tokens:,} tokens, up to 40 tokens", right, rows, required)


def decoding_agrees(evaluator: Evaluator, rows: int) -> Figure:
    """Step by step must give what the single forward said."""
    random = Random(f"{SEED}-decode")
    vocabulary = evaluator.vocabulary
    agree = 0
    for _ in range(rows):
        base = episodes.random_base(random, vocabulary)
        text = held_out_text(random, vocabulary, 1, 40)
        row = evaluator.row(episodes.copy_episode(base, text))
        agree += (evaluator.decode(row.prompt) == row.reply) == evaluator.exact([row])[0]
    return Figure("decoding step by step agrees", agree, rows, 1.0)


def figures(evaluator: Evaluator, rows: int, is_quick: bool) -> Iterator[Figure]:
    yield copies(evaluator, 1, 40, rows, 0.98)
    yield copies(evaluator, 41, 120, rows, 0.95)
    yield second_turns(evaluator, rows)
    yield from tool_loops(evaluator, rows)
    yield decoding_agrees(evaluator, DECODED_ROWS)
    yield behind_prefix(evaluator, 4_000, rows, 0.90)
    if not is_quick:
        yield behind_prefix(evaluator, 12_000, rows // 2, 0.75)
        yield from copies_by_kind(evaluator, rows // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the embedded model nano.")
    parser.add_argument("--model", type=Path, default=Path("models/nano"))
    parser.add_argument("--rows", type=int, default=400, help="texts for each figure")
    parser.add_argument("--quick", action="store_true", help="60 rows, no 12,000-token prefix")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    evaluator = Evaluator(arguments.model)
    found = []
    for figure in figures(evaluator, 60 if arguments.quick else arguments.rows, arguments.quick):
        print(line(figure), flush=True)
        found.append({**asdict(figure), "share": round(figure.share, 4)})
    if arguments.json:
        arguments.json.write_text(json.dumps({"schema_version": 1, "figures": found}, indent=2))
    missed = [f for f in found if f["required"] is not None and f["share"] < f["required"]]
    raise SystemExit(1 if missed else 0)


def line(figure: Figure) -> str:
    required = "" if figure.required is None else f"   required {figure.required:.0%}"
    return f"{figure.name:<44} {figure.share:7.1%}  ({figure.right}/{figure.rows}){required}"


if __name__ == "__main__":
    main()
