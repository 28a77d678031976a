"""Running streams while a long prompt is prefilled: their longest gaps, and what the prompt loses.

Called by `cli/bench_stall.py`. Each run asks a long prompt on the idle server, then starts the
streams, looks at them undisturbed, and asks another prompt of that length beside them; no prompt
comes twice. Must not know how gaps become verdicts (stall_report.py).
"""

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from verger.bench.chat import Answer, AnswerParts, Options, Target, ask_chat, stream
from verger.bench.children import BenchError
from verger.bench.prompts import endless, joined_text
from verger.bench.reader import ReadError
from verger.bench.served import serving, settled_status
from verger.bench.stall_report import (
    Span,
    StallPlan,
    StallReport,
    StallRun,
    longest_gap_ms,
    stall_report,
)
from verger.formats.conversation import Conversation, Message, Role

PROMPT_LIMIT_S = 900.0
BEGIN_LIMIT_S = 120.0
"""Until every stream has shown its first token."""
STEADY_S = 1.0
"""From then on, for the prompts of the streams themselves to be behind them."""
MIN_UNDISTURBED_S, MAX_UNDISTURBED_S = 2.0, 10.0
PAUSE_S = 1.0
"""Before the next prompt, where the server does not tell whether it is idle."""
POLL_S = 0.01
STREAM_TOKENS = 4_096
TEXT_TOKENS = 100
PROMPT_ANSWER_TOKENS = 32
MAX_RESTARTS = 100
"""Of one stream in one run."""


@dataclass(slots=True)
class Streamed:
    """One stream of a run: the times of its events, a list for each request it took."""

    segments: list[list[float]] = field(default_factory=list)
    failure: str | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the answer that runs has shown a token."""
        return bool(self.segments and self.segments[-1])


async def measure(plan: StallPlan, notify: Callable[[str], None]) -> StallReport:
    """All runs, after one prompt that only warms up. Raises BenchError."""
    with TemporaryDirectory(prefix="verger-bench-") as folder:
        notify("starting")
        async with _target(plan, Path(folder) / "home") as target:
            stall = _Stall(plan, target, Random(plan.seed))  # noqa: S311 (not secrets)
            notify(f"warming up with {plan.prompt_tokens} tokens")
            await stall.warm_up()
            runs = []
            for number in range(1, plan.repeats + 1):
                notify(f"run {number} of {plan.repeats}")
                runs.append(await stall.run())
    return stall_report(plan, runs, platform.platform(), os.cpu_count() or 0)


@asynccontextmanager
async def _target(plan: StallPlan, home: Path) -> AsyncIterator[Target]:
    if plan.running is not None:
        yield plan.running
        return
    assert plan.own is not None
    settings = {"VERGER_ENGINE_TARGET_ITL_MS": f"{plan.target_itl_ms:g}"}
    async with serving(plan.own, home, settings) as endpoint:
        yield Target(endpoint, plan.model)


@dataclass(frozen=True, slots=True)
class _Stall:
    plan: StallPlan
    target: Target
    random: Random

    async def warm_up(self) -> None:
        """For kernels to be compiled, and for a server that learns what its steps cost."""
        await self._settle()
        await self._ask_long(self._long_prompt())
        await self._with_streams(MIN_UNDISTURBED_S)

    async def run(self) -> StallRun:
        """Alone, undisturbed, disturbed."""
        await self._settle()
        alone = await self._ask_long(self._long_prompt())
        await self._settle()
        undisturbed_s = min(max(alone.ttft_s, MIN_UNDISTURBED_S), MAX_UNDISTURBED_S)
        streams, undisturbed, beside = await self._with_streams(undisturbed_s)
        disturbed = Span(beside.sent_s, beside.first_s)
        alone_rate = alone.prompt_tokens / alone.ttft_s
        beside_rate = beside.prompt_tokens / beside.ttft_s
        return StallRun(
            prompt_tokens=beside.prompt_tokens,
            alone_s=alone.ttft_s,
            beside_s=beside.ttft_s,
            rate_ratio=beside_rate / alone_rate,
            undisturbed_ms=_longest(streams, undisturbed),
            disturbed_ms=_longest(streams, disturbed),
            restarts=sum(len(streamed.segments) - 1 for streamed in streams),
        )

    async def _with_streams(self, undisturbed_s: float) -> tuple[list[Streamed], Span, Answer]:
        """The streams, when they were undisturbed, and the prompt that was asked beside them."""
        # Made beforehand: while a text is made, nothing is read.
        prompt = self._long_prompt()
        streams = [Streamed() for _ in range(self.plan.streams)]
        tasks = [
            asyncio.create_task(self._keep_up(streamed, self._question()), name="stream")
            for streamed in streams
        ]
        try:
            await _until_begun(streams)
            await asyncio.sleep(STEADY_S)
            undisturbed = Span(time.perf_counter(), time.perf_counter() + undisturbed_s)
            await asyncio.sleep(undisturbed_s)
            beside = await self._ask_long(prompt)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if failures := [streamed.failure for streamed in streams if streamed.failure]:
            raise BenchError(f"a stream failed: {failures[0]}")
        return streams, undisturbed, beside

    async def _keep_up(self, streamed: Streamed, question: Conversation) -> None:
        """Read until cancelled; an answer that ends is asked for anew."""
        try:
            for _ in range(MAX_RESTARTS + 1):
                streamed.segments.append([])
                parts = AnswerParts(text_s=streamed.segments[-1])
                async with aclosing(stream(self.target, question, self._options())) as events:
                    async for event in events:
                        parts.feed(event)
            streamed.failure = f"it ended more than {MAX_RESTARTS} times"
        except ReadError as error:
            streamed.failure = str(error)

    def _options(self) -> Options:
        """With what ends an answer forbidden, where its ids are known."""
        plan = self.plan
        bias = endless(plan.vocabulary) if plan.has_models_vocabulary else {}
        return Options(STREAM_TOKENS, bias)

    def _question(self) -> Conversation:
        text = joined_text(TEXT_TOKENS, self.plan.vocabulary, self.random)
        return Conversation((Message(Role.USER, f"Write a very long story about {text}"),))

    def _long_prompt(self) -> Conversation:
        text = joined_text(self.plan.prompt_tokens, self.plan.vocabulary, self.random)
        return Conversation((Message(Role.SYSTEM, text), Message(Role.USER, "Say hello.")))

    async def _ask_long(self, prompt: Conversation) -> Answer:
        options = Options(PROMPT_ANSWER_TOKENS)
        try:
            return await ask_chat(self.target, prompt, options, PROMPT_LIMIT_S)
        except ReadError as error:
            raise BenchError(f"the long prompt failed: {error}") from None

    async def _settle(self) -> None:
        if await settled_status(self.target.endpoint, self.target.key) is None:
            await asyncio.sleep(PAUSE_S)


async def _until_begun(streams: list[Streamed]) -> None:
    deadline_s = time.monotonic() + BEGIN_LIMIT_S
    while not all(streamed.has_begun for streamed in streams):
        if failures := [streamed.failure for streamed in streams if streamed.failure]:
            raise BenchError(f"a stream failed: {failures[0]}")
        if time.monotonic() > deadline_s:
            raise BenchError(f"not every stream began within {BEGIN_LIMIT_S:.0f} s")
        await asyncio.sleep(POLL_S)


def _longest(streams: list[Streamed], span: Span) -> list[float]:
    found = [longest_gap_ms(streamed.segments, span) for streamed in streams]
    gaps = [gap for gap in found if gap is not None]
    if not gaps:
        raise BenchError("no stream lasted: their answers are too short to be measured")
    return gaps
