"""What it costs to reach a cloud provider through Verger: latency, throughput, CPU.

Called by `cli/bench_fallback.py`. Two children: `verger serve`, and the provider (`loopback.py`),
who is asked directly and through the gateway in turn, by the same reader. Reservations and
settlements are on disk, as they always are. Must not know how it is printed.
"""

import asyncio
import os
import platform
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from verger.bench.children import BenchError, Child, child, free_port, wait_ready
from verger.bench.client import Endpoint, events
from verger.bench.fallback_report import (
    SCHEMA_VERSION,
    FallbackPlan,
    FallbackReport,
    Flow,
    flow_of,
    latency_of,
)
from verger.bench.loopback import FAST, PACE_TOK_S, PACED
from verger.bench.processes import processes
from verger.bench.reader import ReadError
from verger.bench.served import made_key

PROVIDER = "loopback"
LATENCY_TOKENS = 4
WARM_UP = 20
CHECKED_LIMIT_S = 30.0
POLL_S = 0.05
ANSWER_LIMIT_S = 600.0
_CONFIG = """
[spill]
monthly_budget_usd = 1000
[[providers]]
name = "loopback"
kind = "compatible"
base_url = "http://127.0.0.1:{port}/v1"
models = {{ fast = "fast", paced = "paced" }}
price = {{ input_usd = 0.1, output_usd = 0.4 }}
"""


@dataclass(frozen=True, slots=True)
class _Times:
    first_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Way:
    """How the provider is asked; `prefix` is what stands before a model's name."""

    endpoint: Endpoint
    prefix: str = ""
    key: str = ""

    async def ask(self, model: str, max_tokens: int) -> _Times:
        """One answer, to its end. Raises BenchError."""
        body = {
            "model": self.prefix + model,
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "max_tokens": max_tokens,
        }
        sent_s, first_s, tokens = time.perf_counter(), None, 0
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                read = events(
                    self.endpoint, "/chat/completions", msgspec.json.encode(body), self.key
                )
                async with aclosing(read) as arriving:
                    async for event in arriving:
                        if b" word" in event.data:
                            first_s = first_s or event.at_s
                            tokens += 1
        except TimeoutError:
            raise BenchError(f"an answer took more than {ANSWER_LIMIT_S:.0f} s") from None
        except ReadError as error:
            raise BenchError(f"an answer failed: {error}") from None
        if first_s is None or tokens != max_tokens:
            raise BenchError(f"an answer has {tokens} tokens instead of {max_tokens}")
        return _Times(first_s - sent_s, tokens)


@dataclass(frozen=True, slots=True)
class _Bench:
    direct: Way
    through: Way
    server: Child

    async def latency(self, pairs: int) -> tuple[list[float], list[float]]:
        """Seconds to the first token, by either way in turn."""
        direct_s, through_s = [], []
        for _ in range(pairs):
            direct_s.append((await self.direct.ask(FAST, LATENCY_TOKENS)).first_s)
            through_s.append((await self.through.ask(FAST, LATENCY_TOKENS)).first_s)
        return direct_s, through_s

    async def flow(self, model: str, plan: FallbackPlan) -> Flow:
        """All streams at once, by one way and then by the other."""
        direct_s = await self._all(self.direct, model, plan)
        before_s = self._cpu_s()
        through_s = await self._all(self.through, model, plan)
        cpu_s = self._cpu_s() - before_s
        tokens = plan.streams * plan.tokens
        return flow_of(tokens, direct_s, through_s, cpu_s, PACE_TOK_S if model == PACED else None)

    async def _all(self, way: Way, model: str, plan: FallbackPlan) -> float:
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(plan.streams):
                tasks.create_task(way.ask(model, plan.tokens))
        return time.perf_counter() - started_s

    def _cpu_s(self) -> float:
        return processes()[self.server.process.pid].cpu_s


async def measure(plan: FallbackPlan, notify: Callable[[str], None]) -> FallbackReport:
    """Run everything; `notify` is told what is being done. Raises BenchError."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="verger-bench-")))
        notify("starting verger serve and a provider on loopback")
        bench = await _start(folder, stack)
        await bench.latency(WARM_UP)
        notify(f"first tokens, {plan.pairs} pairs")
        direct_s, through_s = await bench.latency(plan.pairs)
        flows = []
        for model in (FAST, PACED):
            notify(f"{plan.streams} streams, {model}")
            try:
                flows.append(await bench.flow(model, plan))
            except ExceptionGroup as failures:
                raise _first(failures) from None
        return FallbackReport(
            schema_version=SCHEMA_VERSION,
            machine=platform.platform(),
            cores=os.cpu_count() or 0,
            pairs=plan.pairs,
            streams=plan.streams,
            latency=latency_of(direct_s, through_s),
            flows=flows,
        )


async def _start(folder: Path, stack: AsyncExitStack) -> _Bench:
    home, port, provider_port = folder / "home", free_port(), free_port()
    home.mkdir()
    (home / "config.toml").write_text(_CONFIG.format(port=provider_port), encoding="utf-8")
    variables = {"VERGER_HOME": str(home)}
    loopback = ["-m", "verger.bench.loopback", str(provider_port)]
    provider = await stack.enter_async_context(child("provider", loopback, folder))
    await wait_ready(provider, provider_port, time.monotonic())
    key = await made_key(folder, home, "bench", "--route", "any", "--budget", "1000")
    serve = ["-m", "verger.cli.main", "serve", "--host", "127.0.0.1", "--port", str(port)]
    serve += ["--model", "nano"]
    server = await stack.enter_async_context(child("server", serve, folder, variables))
    await wait_ready(server, port, time.monotonic())
    bench = _Bench(
        direct=Way(Endpoint("127.0.0.1", provider_port, "/v1")),
        through=Way(Endpoint("127.0.0.1", port, "/v1"), f"{PROVIDER}/", key),
        server=server,
    )
    await _wait_checked(bench.through)
    return bench


async def _wait_checked(through: Way) -> None:
    """The server asks a provider a few tokens before it relies on it."""
    until_s = time.monotonic() + CHECKED_LIMIT_S
    while True:
        try:
            await through.ask(FAST, LATENCY_TOKENS)
            return
        except BenchError:
            if time.monotonic() > until_s:
                raise
        await asyncio.sleep(POLL_S)


def _first(failures: ExceptionGroup) -> BaseException:
    """Of many streams that fail alike, one is enough."""
    failure = failures.exceptions[0]
    return failure if isinstance(failure, BenchError) else failures
