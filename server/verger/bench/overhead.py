"""What HTTP, SSE and two processes cost: Verger against mlx-lm's bare loop, in one run, as ratios.

Called by `cli/bench.py`. Three children: `verger serve`, the reader of its streams, and the loop it
is compared with. Both sides get token-identical prompts and decode greedily; they take turns
(A B A B …), so that a machine that slows down slows down both, and each pair gives one ratio.
Must not know how times become rates (report.py) or are printed (cli/bench.py).
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from verger.bench.children import BenchError, Child, ask, child, free_port, wait_ready
from verger.bench.plan import Plan, Scenario, parse_scenario
from verger.bench.processes import processes
from verger.bench.prompts import Question, text_of
from verger.bench.report import (
    SCHEMA_VERSION,
    Connections,
    CpuPerToken,
    Pair,
    Report,
    ScenarioReport,
    rates,
    summarise,
)
from verger.formats.specials import STOPS
from verger.formats.vocabulary import Vocabulary
from verger.timings import BareRound, HttpRound, Timings

ROUND_LIMIT_S = 600.0
ROWS = 16
"""What the server has by default; more if a scenario needs more."""
CONNECTIONS = 64
CONNECTION_TOKENS = 24
WARM_UP_TOKENS = 8


@dataclass(slots=True)
class Cpu:
    """CPU time of the server's two processes, summed over rounds."""

    gateway_s: float = 0.0
    engine_s: float = 0.0
    tokens: int = 0

    def per_token(self) -> CpuPerToken:
        """In microseconds."""
        return CpuPerToken(self.gateway_s / self.tokens * 1e6, self.engine_s / self.tokens * 1e6)


async def measure(plan: Plan, notify: Callable[[str], None]) -> Report:
    """Run everything; `notify` is told what is being done. Raises BenchError."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="verger-bench-")))
        notify("starting verger serve")
        bench = await _start(plan, folder, stack)
        await bench.warm_up()
        measured = []
        for scenario in plan.scenarios:
            notify(f"measuring {scenario.name}")
            measured.append(await bench.run(scenario))
        notify(f"{CONNECTIONS} connections")
        return Report(
            schema_version=SCHEMA_VERSION,
            model=plan.choice.id,
            machine=platform.platform(),
            cores=os.cpu_count() or 0,
            ready_s=bench.ready_s,
            scenarios=measured,
            connections=await bench.connect(),
        )


async def _start(plan: Plan, folder: Path, stack: AsyncExitStack) -> "_Bench":
    """The server first and alone, so that its start is not slowed down by the others'."""
    model, port, started_s = plan.choice.path, free_port(), time.monotonic()
    rows = max(ROWS, *(len(scenario.instructions_tokens) for scenario in plan.scenarios))
    serve = ["-m", "verger.cli.main", "serve", "--host", "127.0.0.1", "--port", str(port)]
    serve += ["--model", plan.requested, "--max-rows", str(rows)]
    server = await stack.enter_async_context(child("server", serve, folder))
    ready_s = await wait_ready(server, port, started_s)
    tokenizer = model / "tokenizer.json"
    reader = ["-m", "verger.bench.reader", str(tokenizer)]
    bare = ["-m", "verger.engine.device.bare_loop", str(model)]
    return _Bench(
        plan=plan,
        port=port,
        ready_s=ready_s,
        server=server,
        reader=await stack.enter_async_context(child("reader", reader, folder)),
        bare=await stack.enter_async_context(child("bare loop", bare, folder)),
        vocabulary=Vocabulary.from_file_bytes(tokenizer.read_bytes()),
    )


@dataclass(frozen=True, slots=True)
class _Bench:
    """The three children and what to ask them."""

    plan: Plan
    port: int
    ready_s: float
    server: Child
    reader: Child
    bare: Child
    vocabulary: Vocabulary

    async def warm_up(self) -> None:
        """One short pair, for kernels to be compiled and caches to be filled."""
        questions = self._questions(parse_scenario(str(ROWS)), WARM_UP_TOKENS, seed=-1)
        await self._pair(questions, ROWS, Cpu())

    async def run(self, scenario: Scenario) -> ScenarioReport:
        """The repeats of one scenario."""
        cpu, pairs = Cpu(), []
        for repeat in range(self.plan.repeats):
            questions = self._questions(scenario, self.plan.tokens, seed=repeat)
            http, bare = await self._pair(questions, scenario.bare_prefill_rows, cpu)
            pairs.append(Pair(rates(http.streams), rates(bare.streams)))
        return summarise(scenario.name, scenario.target_ratio, http.streams, pairs, cpu.per_token())

    async def connect(self) -> Connections:
        """Many more streams than rows, all at once: the last ones wait, none is refused."""
        random = Random(CONNECTIONS)  # noqa: S311 (not secrets)
        texts = [text_of(CONNECTION_TOKENS, self.vocabulary, random) for _ in range(CONNECTIONS)]
        questions = [Question(self.plan.choice.id, text, CONNECTION_TOKENS) for text in texts]
        timings = await self._ask_http(questions)
        ended_s = [stream.ended_s for stream in timings.streams]
        return Connections(CONNECTIONS, len(ended_s), max(ended_s, default=0.0))

    def _questions(self, scenario: Scenario, max_tokens: int, seed: int) -> list[Question]:
        """Texts as long as the answers, so that a model that repeats them is kept busy; and new
        ones in each round, so that no side can remember them."""
        random = Random(seed)  # noqa: S311 (not secrets)
        return [
            Question(
                model=self.plan.choice.id,
                text=text_of(self.plan.tokens, self.vocabulary, random),
                max_tokens=max_tokens,
                instructions=text_of(tokens, self.vocabulary, random),
            )
            for tokens in scenario.instructions_tokens
        ]

    async def _pair(
        self, questions: Sequence[Question], prefill_rows: int, cpu: Cpu
    ) -> tuple[Timings, Timings]:
        before = self._cpu_s()
        http = await self._ask_http(questions)
        after = self._cpu_s()
        if http.failures:
            raise BenchError(f"a stream failed: {http.failures[0]}")
        if not all(stream.token_s for stream in http.streams):
            raise BenchError("an answer shows no text: this model cannot be measured")
        cpu.gateway_s += after.gateway_s - before.gateway_s
        cpu.engine_s += after.engine_s - before.engine_s
        cpu.tokens += sum(stream.tokens for stream in http.streams)
        bare = await self._ask_bare(questions, prefill_rows)
        if [s.prompt_tokens for s in http.streams] != [s.prompt_tokens for s in bare.streams]:
            raise BenchError("both sides must get the same prompts; was it midnight? Run it again")
        return http, bare

    async def _ask_http(self, questions: Sequence[Question]) -> Timings:
        bodies = [question.body() for question in questions]
        return await ask(
            self.reader, HttpRound(self.port, bodies, ROUND_LIMIT_S), ROUND_LIMIT_S + 10
        )

    async def _ask_bare(self, questions: Sequence[Question], prefill_rows: int) -> Timings:
        date = datetime.now().astimezone().date().isoformat()
        asked = BareRound(
            prompts=[question.prompt_ids(self.vocabulary, date) for question in questions],
            max_tokens=questions[0].max_tokens,
            stop_ids=[self.vocabulary.special(stop.value) for stop in STOPS],
            prefill_rows=prefill_rows,
        )
        return await ask(self.bare, asked, ROUND_LIMIT_S)

    def _cpu_s(self) -> Cpu:
        """So far; the engine is the gateway's only child."""
        running = processes().values()
        gateway_pid = self.server.process.pid
        return Cpu(
            gateway_s=sum(p.cpu_s for p in running if p.pid == gateway_pid),
            engine_s=sum(p.cpu_s for p in running if p.parent_pid == gateway_pid),
        )
