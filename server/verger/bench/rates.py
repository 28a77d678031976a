"""How fast a server loads, prefills by prompt length, and decodes by batch and context.

Called by `cli/bench_rates.py`. At each context, prompts that the server has never seen are asked
one by one; then streams run at once behind the last of them, which they share, so that only
decoding is measured. Must not know how times become rates (rates_report.py).
"""

import asyncio
import os
import platform
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct

from verger.bench.chat import Answer, AnswerParts, Options, Target, ask_chat, stream
from verger.bench.children import BenchError
from verger.bench.client import get
from verger.bench.prompts import endless, joined_text
from verger.bench.rates_report import (
    SCHEMA_VERSION,
    Decoded,
    DecodeRate,
    DecodeRun,
    Limits,
    Load,
    PrefillRate,
    RatesPlan,
    RatesReport,
    Skipped,
    TooShort,
    decode_rate,
    decode_run,
    prefill_rate,
    why_not,
)
from verger.bench.reader import ReadError
from verger.bench.served import Started, read_status, settled_status, started
from verger.formats.conversation import Conversation, Message, Role

PROMPT_LIMIT_S = 900.0
DECODE_LIMIT_S = 1800.0
"""For all streams of a run; a server without a prefix cache prefills them all."""
MODELS_LIMIT_S = 10.0
PAUSE_S = 1.0
"""Before each run, where the server does not tell whether it is idle."""
PROMPT_ANSWER_TOKENS = 16
QUESTION_TOKENS = 8
WARM_UP_CONTEXT_TOKENS, WARM_UP_TOKENS = 256, 32
SETTINGS = {"VERGER_ENGINE_DISK_GIB": "0", "VERGER_SPILL_MAX_WAIT_S": f"{DECODE_LIMIT_S:g}"}
"""Prefixes that are written to the disk meanwhile would be measured as well, and streams that wait
for each other are no reason to refuse one."""
READY_LINE = re.compile(r'event=ready .*?device=("[^"]*"|\S+) load_s=([\d.]+)')
REFUSAL = re.compile(r"(4\d\d|503): ")


class _Card(Struct, frozen=True):
    id: str
    context_length: int | None = None


class _Cards(Struct, frozen=True):
    data: list[_Card]


class _Refused(Exception):
    """The server will not do it: there is nothing to measure, and nothing is broken."""


@dataclass(slots=True)
class _Found:
    prefill: list[PrefillRate] = field(default_factory=list)
    decode: list[DecodeRate] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


async def measure(plan: RatesPlan, notify: Callable[[str], None]) -> RatesReport:
    """All contexts, after a warm-up. Raises BenchError."""
    with TemporaryDirectory(prefix="verger-bench-") as folder:
        notify("starting")
        async with _target(plan, Path(folder) / "home") as (target, served):
            limits = await read_limits(target)
            rates = _Rates(plan, target, limits, Random(plan.seed), notify)  # noqa: S311 (no secrets)
            await rates.warm_up()
            load = None if served is None else load_of(served)
            for context_tokens in plan.contexts:
                await rates.measure_at(context_tokens)
    return RatesReport(
        schema_version=SCHEMA_VERSION,
        model=plan.model,
        url=plan.running.endpoint.url if plan.running else None,
        machine=platform.platform(),
        cores=os.cpu_count() or 0,
        seed=plan.seed,
        tokens=plan.tokens,
        repeats=plan.repeats,
        load=load,
        prefill=rates.found.prefill,
        decode=rates.found.decode,
        skipped=rates.found.skipped,
    )


def load_of(served: Started) -> Load:
    """What it took to start, the engine's part by the server's own log."""
    log = served.log.read_text(encoding="utf-8", errors="replace")
    told = READY_LINE.search(log)
    return Load(
        ready_s=served.ready_s,
        engine_s=float(told[2]) if told else None,
        device=told[1].strip('"') if told else None,
    )


async def read_limits(target: Target) -> Limits:
    """What the status and the model's card tell, on an idle server."""
    status = await read_status(target.endpoint, target.key)
    context_tokens = await _context_tokens(target)
    if status is None:
        return Limits(context_tokens)
    return Limits(
        context_tokens,
        rows=status.rows.max or None,
        kv_bytes=(status.cache.limit_bytes - status.ring_bytes) or None,
        token_bytes=status.cache.token_bytes,
    )


async def _context_tokens(target: Target) -> int | None:
    try:
        body = await get(target.endpoint, "/models", target.key, MODELS_LIMIT_S)
        cards = [] if body is None else msgspec.json.decode(body, type=_Cards).data
    except (ReadError, msgspec.DecodeError):
        return None
    return next((card.context_length for card in cards if card.id == target.model), None)


@asynccontextmanager
async def _target(plan: RatesPlan, home: Path) -> AsyncIterator[tuple[Target, Started | None]]:
    if plan.running is not None:
        yield plan.running, None
        return
    assert plan.own is not None
    async with started(plan.own, home, SETTINGS) as served:
        yield Target(served.endpoint, plan.model), served


@dataclass(frozen=True, slots=True)
class _Rates:
    plan: RatesPlan
    target: Target
    limits: Limits
    random: Random
    notify: Callable[[str], None]
    found: _Found = field(default_factory=_Found)

    async def warm_up(self) -> None:
        """For kernels to be compiled, of the largest batch as well."""
        self.notify("warming up")
        batch = min(max(self.plan.batches), self.limits.rows or max(self.plan.batches))
        text = self._text(WARM_UP_CONTEXT_TOKENS)
        try:
            await self._ask(text)
            await self._decode(text, batch, WARM_UP_TOKENS)
        except _Refused as error:
            raise BenchError(f"the server takes no requests: {error}") from None

    async def measure_at(self, context_tokens: int) -> None:
        """Prefill, then decode with each batch behind the same text."""
        if reason := why_not(context_tokens, 1, PROMPT_ANSWER_TOKENS, self.limits):
            self._skip(context_tokens, None, reason)
            return
        try:
            text = await self._measure_prefill(context_tokens)
        except _Refused as error:
            self._skip(context_tokens, None, str(error))
            return
        for batch in self.plan.batches:
            reason = why_not(context_tokens, batch, self.plan.tokens, self.limits)
            try:
                if reason is None:
                    await self._measure_decode(context_tokens, text, batch)
            except (_Refused, TooShort) as error:
                reason = str(error)
            if reason is not None:
                self._skip(context_tokens, batch, reason)

    async def _measure_prefill(self, context_tokens: int) -> str:
        """Returns the text of the last prompt, which the server may still hold."""
        self.notify(f"prefill of {context_tokens} tokens")
        answers = []
        for _ in range(self.plan.repeats):
            text = self._text(context_tokens)
            await self._settle()
            answers.append(await self._ask(text))
        self.found.prefill.append(prefill_rate(context_tokens, answers))
        return text

    async def _measure_decode(self, context_tokens: int, text: str, batch: int) -> None:
        self.notify(f"{batch} streams behind {context_tokens} tokens")
        runs: list[DecodeRun] = []
        for _ in range(self.plan.repeats):
            await self._settle()
            streams = await self._decode(text, batch, self.plan.tokens)
            runs.append(decode_run(streams, time.time() - time.perf_counter()))
        rate = decode_rate(context_tokens, streams[0].prompt_tokens, batch, runs)
        self.found.decode.append(rate)

    async def _ask(self, text: str) -> Answer:
        options = Options(PROMPT_ANSWER_TOKENS)
        try:
            return await ask_chat(self.target, self._prompt(text), options, PROMPT_LIMIT_S)
        except ReadError as error:
            raise _failure(error) from None

    async def _decode(self, text: str, batch: int, tokens: int) -> list[Decoded]:
        # Made beforehand: while a text is made, nothing is read.
        prompts = [self._prompt(text) for _ in range(batch)]
        options = self._options(tokens)
        try:
            async with asyncio.timeout(DECODE_LIMIT_S), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._read(prompt, options)) for prompt in prompts]
        except* ReadError as errors:
            raise _failure(errors.exceptions[0]) from None
        except* TimeoutError:
            raise BenchError(f"the streams did not end within {DECODE_LIMIT_S:.0f} s") from None
        return [task.result() for task in tasks]

    async def _read(self, prompt: Conversation, options: Options) -> Decoded:
        parts = AnswerParts()
        async with aclosing(stream(self.target, prompt, options)) as events:
            async for event in events:
                parts.feed(event)
        answer = parts.answer(0.0, 0.0)
        times = zip(parts.text_s, map(self._count, parts.texts), strict=True)
        return Decoded(answer.prompt_tokens, [at_s for at_s, count in times for _ in range(count)])

    def _count(self, text: str) -> int:
        """An event may hold several tokens, and where they cannot be counted is taken for one."""
        if not self.plan.has_models_vocabulary:
            return 1
        return max(1, len(self.plan.vocabulary.encode(text)))

    def _options(self, tokens: int) -> Options:
        """With what ends an answer forbidden, where its ids are known."""
        plan = self.plan
        return Options(tokens, endless(plan.vocabulary) if plan.has_models_vocabulary else {})

    def _text(self, tokens: int) -> str:
        return joined_text(tokens, self.plan.vocabulary, self.random)

    def _prompt(self, text: str) -> Conversation:
        about = self._text(QUESTION_TOKENS)
        question = Message(Role.USER, f"Write a very long story about {about}")
        return Conversation((Message(Role.SYSTEM, text), question))

    def _skip(self, context_tokens: int, batch: int | None, reason: str) -> None:
        skipped = Skipped(context_tokens=context_tokens, batch=batch, reason=reason)
        self.found.skipped.append(skipped)

    async def _settle(self) -> None:
        if await settled_status(self.target.endpoint, self.target.key) is None:
            await asyncio.sleep(PAUSE_S)


def _failure(error: BaseException) -> Exception:
    """What the server refuses is skipped; anything else ends the measurement."""
    if REFUSAL.match(str(error)):
        return _Refused(str(error))
    return BenchError(f"a request failed: {error}")
