"""Many unlike requests at once for a while: is every reply sound, and is all given back afterwards?

Called by `cli/bench_soak.py`. So many clients, each in a closed loop, play the conversations of
`soak_asks.py`; a quarter of the requests is given up by its client. Then the server must hold what
it held before. Must not know what makes a reply sound (`soak_check.py`).
"""

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from verger.bench.chat import Target
from verger.bench.children import BenchError
from verger.bench.client import Endpoint
from verger.bench.served import Status, made_key, read_status, settled_status, started
from verger.bench.soak_asks import Ask, asks, limited, plain
from verger.bench.soak_check import Outcome, Verdict, judge
from verger.bench.soak_client import reply_to
from verger.bench.soak_memory import Memory, Sampler, interval_of, memory_of
from verger.bench.soak_report import (
    MIN_COPIED,
    SCHEMA_VERSION,
    SoakPlan,
    SoakReport,
    Tally,
    remains_of,
)

ANSWER_LIMIT_S = 600.0
"""Of one request; the longest wait before a 503 is in it."""
REFUSED_PAUSE_S = 1.0
"""A client that was refused does not come back at once."""
KEYS = {"ada": (), "ben": (), "night": ("--class", "batch")}
"""Of our own server: whose requests they are, and with which flags the key is made."""
WATCHER, ALONE = "watcher", "alone"
NANO_KV_GIB = 0.5
"""nano leaves so much memory to KV that no soak would see a prefix evicted."""
DISK_GIB = 1
NO_PID = "a server that was not started here does not tell its process"
TOO_FEW = "too short, or the system does not tell: no samples to compare"


@dataclass(frozen=True, slots=True)
class _Subject:
    """Who is asked, with which keys; `watch_key` sees what the others do."""

    endpoint: Endpoint
    model: str
    keys: Sequence[str]
    watch_key: str
    alone_key: str
    """Whose tenant has nothing cached, where the server is ours."""
    pid: int | None


async def measure(plan: SoakPlan, notify: Callable[[str], None]) -> SoakReport:
    """The whole soak. Raises BenchError if it cannot begin."""
    with TemporaryDirectory(prefix="verger-bench-") as folder:
        notify("starting")
        async with _subject(plan, Path(folder)) as subject:
            return await _Soak(plan, subject, notify).run()


@asynccontextmanager
async def _subject(plan: SoakPlan, folder: Path) -> AsyncIterator[_Subject]:
    if plan.running is not None:
        running = plan.running
        key = running.key
        yield _Subject(running.endpoint, running.model, [key], key, key, None)
        return
    assert plan.own is not None
    home = folder / "home"
    home.mkdir()
    watch_key = await made_key(folder, home, WATCHER, "--admin")
    alone_key = await made_key(folder, home, ALONE, "--tenant", ALONE)
    keys = [await made_key(folder, home, name, *flags) for name, flags in KEYS.items()]
    async with started(plan.own, home, _settings(plan)) as server:
        yield _Subject(server.endpoint, plan.model, keys, watch_key, alone_key, server.pid)


def _settings(plan: SoakPlan) -> dict[str, str]:
    settings = {"VERGER_ENGINE_DISK_GIB": f"{DISK_GIB}"}
    if plan.is_copier:
        settings["VERGER_ENGINE_KV_GIB"] = f"{NANO_KV_GIB}"
    return settings


@dataclass(slots=True)
class _Soak:
    plan: SoakPlan
    subject: _Subject
    notify: Callable[[str], None]
    tally: Tally = field(default_factory=Tally)
    _started_s: float = 0.0
    _sampler: Sampler | None = None

    async def run(self) -> SoakReport:
        """A question alone, the soak, and how the server is after it."""
        greeting = await self._plain()
        if greeting.outcome is not Outcome.ANSWERED:
            raise BenchError(f"the first question was {greeting.outcome.value}: {greeting.reason}")
        before = await self._settled()
        if before is None:
            raise BenchError("the server tells no status at /v1/status: a soak needs a Verger")
        self._started_s = time.monotonic()
        await self._ask_all()
        elapsed_s = time.monotonic() - self._started_s
        self.notify("waiting until the server is idle")
        await self._explain_wrong_copies()
        remains = await self._remains(before)
        return self._report(elapsed_s, remains)

    async def _ask_all(self) -> None:
        plan = self.plan
        until = f"for {plan.minutes:g} minutes" if plan.minutes else f"{plan.requests} requests"
        self.notify(f"asking {until}, {plan.at_once} at once")
        conversations = self._conversations()
        clients = [
            asyncio.create_task(self._client(conversations), name=f"client {number}")
            for number in range(plan.at_once)
        ]
        sampling = asyncio.create_task(self._sample(), name="sampler")
        try:
            await asyncio.gather(*clients)
        finally:
            for task in (*clients, sampling):
                task.cancel()
            await asyncio.gather(*clients, sampling, return_exceptions=True)

    def _conversations(self) -> Iterator[Sequence[Ask]]:
        endless = asks(self.plan.seed, self.subject.model, len(self.subject.keys))
        return limited(endless, self.plan.requests) if self.plan.requests else endless

    async def _client(self, conversations: Iterator[Sequence[Ask]]) -> None:
        """One conversation after the other, turn by turn."""
        for turns in conversations:
            for asked in turns:
                if self._progress() >= 1 or self.tally.is_hopeless:
                    return
                verdict = await self._ask(asked, self.subject.keys[asked.client])
                self.tally.note(asked, verdict)
                if verdict.outcome in (Outcome.OVERLOADED, Outcome.FAILED):
                    await asyncio.sleep(REFUSED_PAUSE_S)

    async def _explain_wrong_copies(self) -> None:
        """Ask nano each once more, one after the other."""
        alone = Verdict(Outcome.ANSWERED)
        for asked, verdict in self.tally.unexplained:
            # A server that does not answer any more is not asked again.
            if alone.outcome is Outcome.ANSWERED:
                alone = await self._ask(replace(asked, leave=None), self.subject.alone_key)
            self.tally.explain(asked, verdict, alone)

    async def _ask(self, asked: Ask, key: str) -> Verdict:
        target = Target(self.subject.endpoint, self.subject.model, key)
        reply = await reply_to(target, asked, ANSWER_LIMIT_S)
        return judge(asked if self.plan.is_copier else replace(asked, expected=None), reply)

    def _progress(self) -> float:
        """From 0 to 1."""
        if self.plan.minutes:
            return (time.monotonic() - self._started_s) / (60 * self.plan.minutes)
        assert self.plan.requests
        return self.tally.requests / self.plan.requests

    async def _plain(self) -> Verdict:
        return await self._ask(plain(self.subject.model), self.subject.keys[0])

    async def _sample(self) -> None:
        if self.subject.pid is None:
            return
        interval_s = interval_of(self.plan.minutes)
        self._sampler = Sampler(self.subject.pid, self._progress, self._bounded_bytes, interval_s)
        await self._sampler.run()

    async def _bounded_bytes(self) -> int:
        status = await read_status(self.subject.endpoint, self.subject.watch_key)
        return status.memory.kv_bytes + status.memory.buffer_bytes if status else 0

    async def _settled(self) -> Status | None:
        return await settled_status(self.subject.endpoint, self.subject.watch_key)

    async def _remains(self, before: Status) -> list[str]:
        """What is not as it was."""
        try:
            after = await self._settled()
        except BenchError as error:
            return [str(error)]
        if after is None:
            return ["the server does not tell its status any more"]
        found = remains_of(before, after)
        farewell = await self._plain()
        if farewell.outcome is not Outcome.ANSWERED:
            found.append(f"a plain question is {farewell.outcome.value}: {farewell.reason}")
        if self._sampler:
            await self._sampler.find_engine()
            if restarts := self._sampler.engine_restarts:
                found.append(f"the engine was restarted, {restarts} times")
        return found

    def _report(self, elapsed_s: float, remains: list[str]) -> SoakReport:
        plan, tally = self.plan, self.tally
        memory = self._memory()
        has_no_memory = TOO_FEW if self.subject.pid else NO_PID
        return SoakReport(
            schema_version=SCHEMA_VERSION,
            model=plan.model,
            url=plan.running.endpoint.url if plan.running else None,
            machine=platform.platform(),
            cores=os.cpu_count() or 0,
            seed=plan.seed,
            at_once=plan.at_once,
            minutes=plan.minutes,
            elapsed_s=round(elapsed_s, 1),
            requests=tally.requests,
            features=dict(sorted(tally.features.items())),
            counts=tally.counts(),
            is_sound=tally.is_sound,
            copies=tally.copies,
            own_mistakes=tally.own_mistakes,
            wrong_copies=tally.wrong_copies,
            target_copied=MIN_COPIED,
            are_copies_met=tally.are_copies_met,
            examples=tally.examples,
            remains=remains,
            is_restored=not remains,
            memory=memory,
            memory_skipped=None if memory else has_no_memory,
        )

    def _memory(self) -> Memory | None:
        sampler = self._sampler
        if sampler is None:
            return None
        return memory_of(sampler.samples, sampler.engine_restarts, self.plan.minutes)
