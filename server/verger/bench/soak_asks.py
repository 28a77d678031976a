"""What a soak asks: conversations whose turns differ in every way in which a request can.

Called by `soak.py`. Pure: everything follows from the seed. Histories are scripted as nano answers
them (models/nano/README.md), so that a turn does not depend on how the one before went, and what a
greedy, unpenalised answer must be is known beforehand. Must not know HTTP.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import msgspec

from verger.bench.chat_rules import Json
from verger.bench.prompts import WORDS

LEAVING = 0.25
"""The part of the requests whose client leaves."""
MAX_LEAVE_S = 0.5
MAX_LEAVE_EVENTS = 12
MAX_TURNS = 3
MAX_TOKENS = 400
"""Of an answer that nothing else limits."""
FEW_TOKENS = 24
TEXT_WORDS = (3, 24)
INSTRUCTION_WORDS = (20, 300)
TOOLS = {
    "get_weather": ("city", "days"),
    "send_letter": ("name", "pages"),
    "open_gate": ("place", "minutes"),
}
PARTS = {
    "streamed": 0.6,
    "sampled": 0.5,
    "stop": 0.2,
    "penalties": 0.2,
    "logprobs": 0.25,
    "n": 0.1,
    "max_tokens": 0.25,
}
"""Of the requests, how many have what; each is drawn by itself."""


@dataclass(frozen=True, slots=True)
class Leave:
    """When the client goes: after so many events, or where that is None after a time."""

    after_events: int | None
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What nano answers if it samples greedily: a text, or a call's name and arguments."""

    text: str = ""
    tool: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `features` name what is special about it; `expected` is None if anything may
    come."""

    body: Json
    client: int
    """Whose request it is: all of a conversation are one client's."""
    leave: Leave | None
    expected: Expected | None
    features: frozenset[str]


def asks(seed: int, model: str, clients: int, first: int = 0) -> Iterator[Sequence[Ask]]:
    """Conversations without end, each to be asked turn by turn. The one with the number `number`
    is always the same."""
    number = first
    while True:
        random = Random(f"{seed} {number}")  # noqa: S311 (not secrets)
        yield _Conversation(random, model, number, number % clients).turns()
        number += 1


def limited(conversations: Iterator[Sequence[Ask]], requests: int) -> Iterator[Sequence[Ask]]:
    """Only so many requests; the last conversation may be cut short."""
    for turns in conversations:
        turns = list(islice(turns, requests))
        requests -= len(turns)
        if turns:
            yield turns
        if not requests:
            return


def plain(model: str) -> Ask:
    """The simplest question, with which a server shows that it answers."""
    text = "The old bridge is open."
    body = _body(model, [{"role": "user", "content": text}])
    return Ask(body, 0, None, Expected(f"You said: {text}"), frozenset())


@dataclass(slots=True)
class _Conversation:
    random: Random
    model: str
    number: int
    client: int

    def turns(self) -> list[Ask]:
        """Each with all that was said before."""
        has_tools = self.random.random() < 0.4
        messages: list[Json] = []
        if self.random.random() < 0.4:
            words = self.random.choices(WORDS, k=self.random.randint(*INSTRUCTION_WORDS))
            messages.append({"role": "system", "content": " ".join(words)})
        found: list[Ask] = []
        for turn in range(self.random.randint(1, MAX_TURNS)):
            if has_tools and self.random.random() < 0.7:
                found += self._tool_turns(messages, turn)
            else:
                found.append(self._text_turn(messages, has_tools))
        return found

    def _text_turn(self, messages: list[Json], has_tools: bool) -> Ask:
        text = self._text()
        answer = f"You said: {text}"
        messages.append({"role": "user", "content": text})
        asked = self._ask(messages, Expected(answer), has_tools)
        messages.append({"role": "assistant", "content": answer})
        return asked

    def _tool_turns(self, messages: list[Json], turn: int) -> list[Ask]:
        """The question that leads to a call, and the result that leads to an answer."""
        tool = self.random.choice(sorted(TOOLS))
        name, count = TOOLS[tool]
        value = {name: self.random.choice(WORDS).strip(".,:;"), count: self.random.randint(1, 9)}
        arguments = msgspec.json.encode(value).decode()
        messages.append({"role": "user", "content": f"call {tool} {arguments}"})
        calling = self._ask(messages, Expected(arguments, tool), has_tools=True)
        call_id, result = f"call_{self.number}_{turn}", self._text()
        function = {"name": tool, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        answer = f"{tool} returned: {result}"
        answering = self._ask(messages, Expected(answer), has_tools=True)
        messages.append({"role": "assistant", "content": answer})
        return [calling, answering]

    def _text(self) -> str:
        words = self.random.sample(WORDS, k=self.random.randint(*TEXT_WORDS))
        return " ".join(words).capitalize()

    def _ask(self, messages: list[Json], expected: Expected, has_tools: bool) -> Ask:
        has = {name for name, part in PARTS.items() if self.random.random() < part}
        if expected.tool:
            # A call is cut by neither, and a sampled one need not be JSON: nothing holds it to it.
            has -= {"stop", "sampled", "penalties"}
        body = _body(self.model, list(messages))
        if has_tools:
            body["tools"] = [_declared(tool) for tool in TOOLS]
            has.add("tools")
        for name in sorted(has & _ADDED.keys()):
            body |= _ADDED[name](self.random, expected.text)
        leave = self._leave("streamed" in has) if self.random.random() < LEAVING else None
        is_free = bool(has & {"sampled", "penalties"})
        if leave:
            has.add("leaves")
        return Ask(body, self.client, leave, None if is_free else expected, frozenset(has))

    def _leave(self, is_streamed: bool) -> Leave:
        if is_streamed and self.random.random() < 0.7:
            return Leave(self.random.randint(1, MAX_LEAVE_EVENTS))
        return Leave(None, self.random.uniform(0, MAX_LEAVE_S))


def _body(model: str, messages: list[Json]) -> Json:
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def _declared(tool: str) -> Json:
    name, count = TOOLS[tool]
    properties = {name: {"type": "string"}, count: {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": [name, count]}
    return {"type": "function", "function": {"name": tool, "parameters": parameters}}


def _stream(random: Random, answer: str) -> Mapping[str, Any]:
    usage = {"stream_options": {"include_usage": True}} if random.random() < 0.75 else {}
    return {"stream": True, **usage}


def _sampled(random: Random, answer: str) -> Mapping[str, Any]:
    return {"temperature": random.choice((0.5, 1.0)), "seed": random.randint(0, 2**31)}


def _stop(random: Random, answer: str) -> Mapping[str, Any]:
    """Of what will be said, in the middle of words too; or also what will not."""
    start = random.randint(0, len(answer) - 3)
    said = answer[start : start + random.randint(2, 8)]
    return {"stop": random.choice((said, [said, "never said"], ["\n\n", said, "zebra", "quartz"]))}


def _penalties(random: Random, answer: str) -> Mapping[str, Any]:
    penalties = {
        "frequency_penalty": round(random.uniform(-0.5, 1.5), 2),
        "presence_penalty": round(random.uniform(-0.5, 1.5), 2),
        "repetition_penalty": round(random.uniform(1.0, 1.3), 2),
    }
    chosen = random.sample(sorted(penalties), k=random.randint(1, 3))
    return {name: penalties[name] for name in chosen}


def _logprobs(random: Random, answer: str) -> Mapping[str, Any]:
    return {"logprobs": True, "top_logprobs": random.choice((0, 1, 5, 20))}


def _choices(random: Random, answer: str) -> Mapping[str, Any]:
    return {"n": 2}


def _few_tokens(random: Random, answer: str) -> Mapping[str, Any]:
    return {"max_tokens": random.randint(1, FEW_TOKENS)}


_ADDED = {
    "streamed": _stream,
    "sampled": _sampled,
    "stop": _stop,
    "penalties": _penalties,
    "logprobs": _logprobs,
    "n": _choices,
    "max_tokens": _few_tokens,
}
