"""A scheduler for tests: chunks of fixed size, and times that default to zero."""

from dataclasses import replace

from tests.fakes import ECHO_KV, EchoRunner
from verger.engine.cache_disk import Export
from verger.engine.kv_budget import KVBudget
from verger.engine.pacing import Pacer
from verger.engine.prefix_files import FileHeader, SaveOrder
from verger.engine.scheduler import Scheduler
from verger.engine.steps import Close, KVGeometry, Open, Sampled, Step, Work
from verger.messages import Finished, FromEngine, Submit, Tokens


class FixedPacer(Pacer):
    """Two chunk sizes, and a second per thousand tokens recomputed."""

    def __init__(self, alone: int = 2048, beside: int = 512) -> None:
        super().__init__(target_s=0.25)
        self.alone = alone
        self.beside = beside

    def chunk_tokens(self, start: int, beside: Work, has_decodes: bool) -> int:
        return self.beside if has_decodes else self.alone

    def prefill_s(self, start: int, stop: int) -> float:
        return (stop - start) / 1000


class PlainScheduler(Scheduler):
    """Time stands still unless a test says otherwise."""

    def submit(self, submit: Submit, now_s: float = 0.0) -> None:
        super().submit(submit, now_s)

    def cancel(self, request_id: int, now_s: float = 0.0) -> None:
        super().cancel(request_id, now_s)

    def drain(self, now_s: float = 0.0) -> None:
        super().drain(now_s)

    def plan(self, now_s: float = 0.0) -> Step:
        return super().plan(now_s)

    def settle(self, sampled: list[Sampled], seconds: float = 0.0, now_s: float = 0.0) -> None:
        super().settle(sampled, seconds, now_s)


def make_scheduler(
    max_rows: int = 4,
    max_waiting: int = 8,
    alone: int = 40,
    beside: int = 10,
    context_tokens: int = 100,
    kv: KVGeometry = ECHO_KV,
    limit_bytes: int = 1 << 30,
    caches: bool = True,
) -> PlainScheduler:
    """Small chunks, so that few tokens make many steps."""
    return PlainScheduler(
        replace(kv, max_rows=max_rows),
        context_tokens=context_tokens,
        limit_bytes=limit_bytes,
        pacer=FixedPacer(alone, beside),
        caches=caches,
        max_waiting=max_waiting,
    )


def opened(step: Step) -> list[Submit]:
    """Who got a row."""
    return [edit.submit for edit in step.edits if isinstance(edit, Open)]


def closed(step: Step) -> list[int]:
    """Whose row was freed."""
    return [edit.request_id for edit in step.edits if isinstance(edit, Close)]


class DictDisk:
    """A disk tier in a dictionary: what it is asked for happens when `settle` says so."""

    def __init__(self, kv: KVBudget, export: Export) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, FileHeader] = {}
        self.may_save = True
        self.savable_bytes = 1 << 40
        self.seconds_per_byte = 0.0
        self._kv = kv
        self._export = export
        self._written: list[str] = []
        self._asked: list[str] = []

    def read(self, name: str) -> bool:
        self._asked.append(name)
        return True

    def read_s(self, nbytes: int) -> float:
        return nbytes * self.seconds_per_byte

    def save(self, order: SaveOrder) -> None:
        name = order.header.name
        self.files[name] = self._export(order.source, order.window_id)
        self.headers[name] = order.header
        self._written.append(name)

    def settle(self, now_s: float) -> None:
        """Everything that was asked for is done."""
        written, self._written = self._written, []
        asked, self._asked = self._asked, []
        for name in written:
            self._kv.cache.files.saved(name, ok=True)
        for name in asked:
            if name in self.files:
                self._kv.take_file(name, self.files[name], now_s)
            else:
                self._kv.lose_file(name)


class Engine:
    """A scheduler and the echoing runner that checks it; every step takes `step_s`."""

    def __init__(
        self, scheduler: PlainScheduler, step_s: float = 0.01, *, has_disk: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.runner = EchoRunner(scheduler.context_tokens, scheduler.kv.geometry)
        self.disk = DictDisk(scheduler.kv, self.runner.export)
        if has_disk:
            scheduler.kv.disk = self.disk
        self.frames: list[FromEngine] = []
        self.step_s = step_s
        self.now_s = 0.0

    def submit(self, *submits: Submit) -> None:
        """At the engine's present time."""
        for submit in submits:
            self.scheduler.submit(submit, self.now_s)

    def step(self) -> Step:
        """As the loop does: launch the next step, then settle the one before."""
        if self.scheduler.must_settle:
            self._settle()
        step = self.scheduler.plan(self.now_s)
        for edit in step.edits:
            if isinstance(edit, SaveOrder):
                self.disk.save(edit)
            else:
                self.runner.apply(edit)
        self.now_s += self.step_s
        if not step.plan.is_empty:
            self.runner.launch(step.plan)
        if self.scheduler.launched > (0 if step.plan.is_empty else 1):
            self._settle()
        self.scheduler.check_integrity()
        self.frames += self.scheduler.take_frames()
        return step

    def _settle(self) -> None:
        self.scheduler.settle(self.runner.collect(), self.step_s, self.now_s)

    def run(self, *submits: Submit, max_steps: int = 10_000) -> None:
        """Submit, then step until nothing is left to do."""
        self.submit(*submits)
        for _ in range(max_steps):
            if self.scheduler.is_idle:
                return
            self.step()
        raise AssertionError("wedged")

    def finished(self, request_id: int) -> Finished:
        """How a request ended."""
        ends = [frame for frame in self.frames if isinstance(frame, Finished)]
        return next(frame for frame in ends if frame.request_id == request_id)

    def ids(self, request_id: int) -> list[int]:
        """What a request was given."""
        frames = [frame for frame in self.frames if isinstance(frame, Tokens)]
        rows = [row for frame in frames for row in frame.rows if row.request_id == request_id]
        return [token_id for row in rows for token_id in row.ids]
