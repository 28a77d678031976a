"""The seeded traces of agents that `verger bench replay` plays: pure.

Every agent shares instructions and tools with the others, makes calls in a loop, answers, and is
asked once more. What the model is to do is said in the words that the embedded model obeys
(`models/nano/README.md`): `call NAME {json}` after each result, as some harnesses remind their
agent of the next task. Must not know servers, requests or what is measured.
"""

from dataclasses import dataclass
from random import Random

import msgspec

from verger.bench.prompts import joined_text
from verger.formats.conversation import Effort, Tool
from verger.formats.vocabulary import Vocabulary

MAX_AGENTS = 64
MAX_STEPS = 100
MAX_LINE = 999


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes in tokens; a result has any number from the least to the most."""

    name: str
    system_tokens: int
    user_tokens: int
    least_result_tokens: int
    most_result_tokens: int
    answer_tokens: int
    """The most that an answer may have."""
    effort: Effort


SCALES = {
    scale.name: scale
    for scale in (
        Scale("nano", 900, 0, 60, 150, 400, Effort.MEDIUM),
        Scale("full", 8_000, 300, 700, 1_100, 800, Effort.LOW),
    )
}
LAST_RESULT_TOKENS = 30
FOLLOW_UP_TOKENS = 8

_STRING, _INTEGER = {"type": "string"}, {"type": "integer"}
_DECLARED = (
    ("read_page", "Read one page of the book.", {"line": _INTEGER}),
    ("find_word", "List the lines that hold a word.", {"word": _STRING, "line": _INTEGER}),
    ("write_note", "Keep a note for later.", {"note": _STRING}),
    ("open_box", "Open the box with this number.", {"line": _INTEGER, "word": _STRING}),
)
TOOLS = tuple(
    Tool(name, description, {"type": "object", "properties": properties})
    for name, description, properties in _DECLARED
)
_ARGUMENT_WORDS = ("river", "stone", "bridge", "summer", "morning", "boats", "paper", "iron")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that the model is asked for; `arguments` is JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Step:
    """One request: what the client adds to the conversation before it, and what it hopes for."""

    result: str
    """Of the call before; empty where there was none."""
    user: str
    """What the user says; empty where only the result goes back."""
    call: Call | None
    """None: an answer ends the turn."""


@dataclass(frozen=True, slots=True)
class Trace:
    """`agents` holds the steps of each."""

    system: str
    tools: tuple[Tool, ...]
    effort: Effort
    agents: tuple[tuple[Step, ...], ...]


def make_trace(seed: int, agents: int, steps: int, scale: Scale, vocabulary: Vocabulary) -> Trace:
    """`steps` calls by each agent, their answer, and the answer to a second question."""
    random = Random(seed)  # noqa: S311 (not secrets)
    system = "You work with tools, step by step. " + joined_text(
        scale.system_tokens, vocabulary, random
    )
    return Trace(
        system=system,
        tools=TOOLS,
        effort=scale.effort,
        agents=tuple(_agent(steps, scale, vocabulary, random) for _ in range(agents)),
    )


def loop_bias(vocabulary: Vocabulary) -> dict[str, float]:
    """Forbids, while calls are wanted, the words with which a model reports and ends a turn.

    nano was trained on one call per turn. A word that is no single token is let be.
    """
    found = (vocabulary.encode(text) for text in ("tool ", "final"))
    return {str(ids[0]): -100.0 for ids in found if len(ids) == 1}


def _agent(steps: int, scale: Scale, vocabulary: Vocabulary, random: Random) -> tuple[Step, ...]:
    task = joined_text(scale.user_tokens, vocabulary, random)
    call = _call(random)
    made = [Step("", f"{task}\n{_order(call)}".strip(), call)]
    for _ in range(steps - 1):
        call = _call(random)
        tokens = random.randint(scale.least_result_tokens, scale.most_result_tokens)
        made.append(Step(joined_text(tokens, vocabulary, random), _order(call), call))
    made.append(Step(joined_text(LAST_RESULT_TOKENS, vocabulary, random), "", None))
    made.append(Step("", joined_text(FOLLOW_UP_TOKENS, vocabulary, random), None))
    return tuple(made)


def _call(random: Random) -> Call:
    tool = random.choice(TOOLS)
    properties = (tool.parameters or {})["properties"]
    arguments = {
        name: random.randint(1, MAX_LINE) if kind == _INTEGER else random.choice(_ARGUMENT_WORDS)
        for name, kind in properties.items()
    }
    return Call(tool.name, msgspec.json.encode(arguments).decode())


def _order(call: Call) -> str:
    return f"call {call.name} {call.arguments}"
