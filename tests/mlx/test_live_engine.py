"""The real engine process on the embedded model, held against mlx-lm's own model.

Every token that the live engine sampled goes back through one cold, full forward, which must give
the log-probability that the engine reported; greedy answers must be those of the row alone.
"""

import asyncio
import functools
import sys
from collections.abc import Sequence

import mlx.core as mx
import pytest

from tests.mlx.harness import worst_error
from verger import paths
from verger.engine.device.model import GptOss, load
from verger.formats.conversation import Conversation, Effort, Message, Role, Tool
from verger.formats.harmony import render
from verger.formats.specials import STOPS
from verger.formats.vocabulary import Vocabulary
from verger.gateway.engine_client import EngineClient
from verger.messages import (
    PROTOCOL_VERSION,
    Finished,
    FinishReason,
    Hello,
    RowTokens,
    Sampling,
    Submit,
)

pytestmark = [pytest.mark.mlx, pytest.mark.process]

TOLERANCE = 1e-3
READY_S = 60
TEXTS = (
    "The orchard is open.",
    "7 apples, 12 pears and 1999 plums",
    "def pick(tree):\n    return tree.fruit[-1]",
    "Ein Körbchen Äpfel, s'il vous plaît",
    "🍏🍐 in a row",
    "a b a b a b a b a b",
    "call the gardener at noon " * 12,
    "x",
)


@functools.cache
def nano() -> GptOss:
    return load(paths.nano_dir())


@functools.cache
def vocabulary() -> Vocabulary:
    return Vocabulary.from_file_bytes((paths.nano_dir() / "tokenizer.json").read_bytes())


def stop_ids() -> list[int]:
    return [vocabulary().special(stop.value) for stop in STOPS]


def prompt_of(text: str, prefix: str = "") -> list[int]:
    """The prompt of one user message, behind a system message if there is one."""
    system = (Message(Role.SYSTEM, prefix),) if prefix else ()
    tool = Tool("pick_fruit", "Picks.", {"type": "object", "properties": {}})
    conversation = Conversation((*system, Message(Role.USER, text)), (tool,), Effort.LOW)
    return list(render(conversation, vocabulary()).ids)


def requests(sampling: Sampling) -> list[Submit]:
    """Rows of mixed lengths: short, and behind prefixes that wrap the window."""
    prefixes = ("", "Mind the wasps. " * 40, "Be brief.", "", "Ladders! " * 90, "", "", "")
    return [
        Submit(0, prompt_of(text, prefix), 80, stop_ids(), sampling, logprobs=2)
        for text, prefix in zip(TEXTS, prefixes, strict=True)
    ]


def generate(submits: Sequence[Submit]) -> list[tuple[RowTokens, Finished]]:
    """All of them at once through a real engine process."""

    async def session() -> list[tuple[RowTokens, Finished]]:
        command = [sys.executable, "-P", "-m", "verger.engine", "--model", str(paths.nano_dir())]
        hello = Hello(
            PROTOCOL_VERSION,
            vocabulary().special("<|message|>"),
            sorted(vocabulary().specials),
        )
        engine = EngineClient([*command, "--model-id", "nano", "--prefill-chunk", "150"], hello)
        await engine.start()
        try:
            await engine.wait_ready(READY_S)
            return list(await asyncio.gather(*(one(engine, submit) for submit in submits)))
        finally:
            await engine.stop(0)

    return asyncio.run(session())


async def one(engine: EngineClient, submit: Submit) -> tuple[RowTokens, Finished]:
    ids: list[int] = []
    logprobs = []
    async with engine.generate(submit) as generation:
        async for event in generation:
            if isinstance(event, RowTokens):
                ids += event.ids
                logprobs += event.logprobs
            elif isinstance(event, Finished):
                return RowTokens(event.request_id, ids, logprobs), event
    raise AssertionError("the generation ended without Finished")


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(seed=7, top_p=0.95, frequency_penalty=0.3)],
    ids=["greedy", "sampled"],
)
def test_a_cold_forward_gives_the_log_probabilities_that_the_engine_reported(
    sampling: Sampling,
) -> None:
    submits = requests(sampling)
    for submit, (answer, finished) in zip(submits, generate(submits), strict=True):
        assert len(answer.logprobs) == len(answer.ids) == finished.completion_tokens
        assert finished.prompt_tokens == len(submit.prompt)
        assert worst_error(nano(), submit.prompt, answer) <= TOLERANCE


def test_greedy_answers_in_a_full_batch_are_those_of_the_row_alone() -> None:
    submits = requests(Sampling(temperature=0)) * 2
    for submit, (answer, _) in zip(submits, generate(submits), strict=True):
        assert answer.ids == greedy_alone(submit)


def test_seeded_answers_are_the_same_alone_and_in_a_batch() -> None:
    submits = requests(Sampling(temperature=1.5, seed=11))
    in_batch = generate(submits)
    for place in (1, 6):
        ((alone, _),) = generate([submits[place]])
        assert alone.ids == in_batch[place][0].ids


def greedy_alone(submit: Submit) -> list[int]:
    """mlx-lm's own model and caches, one row, one token at a time."""
    model = nano().reference
    cache = model.make_cache()
    ids: list[int] = []
    feed = submit.prompt
    while len(ids) < submit.max_tokens:
        logits = model(mx.array([feed]), cache=cache)[0, -1]
        ids.append(int(mx.argmax(logits)))
        if ids[-1] in submit.stop_ids:
            break
        feed = ids[-1:]
    return ids


def test_the_embedded_model_stops_by_itself() -> None:
    ((_, finished),) = generate([requests(Sampling(temperature=0))[0]])
    assert finished.reason is FinishReason.STOP
