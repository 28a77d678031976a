"""What gateway and engine hold while a soak runs, and how much that grew once it was warm.

The sampler is run by `soak.py`, the growth is told by `soak_report.py`. Memory that KV has taken in
the meantime is no leak: the cache grows until its budget is used up. Must not know requests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from msgspec import Struct

from verger.bench.footprint import footprint_bytes
from verger.bench.processes import processes

SAMPLE_S = 1.0
MAX_SAMPLES = 1000
"""A long soak is looked at less often."""
WARM, END = 0.25, 0.75
"""Of the soak: what is held in the quarter from the first on is compared with the last one."""
TARGET_GROWTH = 0.10
TARGET_MINUTES = 10.0
"""In less time a process has hardly had all its buffers once."""


@dataclass(frozen=True, slots=True)
class Sample:
    """At a fraction of the soak; None where the system does not tell."""

    progress: float
    gateway_bytes: int | None
    engine_bytes: int | None
    kv_bytes: int


class Growth(Struct, frozen=True, kw_only=True):
    """Of one process: medians of the second quarter of the soak, when it is warm, and of the
    last. `kv_bytes` of the growth are KV, rows' and cached prefixes'."""

    warm_bytes: int
    end_bytes: int
    peak_bytes: int
    growth_bytes: int
    kv_bytes: int
    growth_ratio: float
    """Of what is not KV, to what was held when warm."""


class Memory(Struct, frozen=True, kw_only=True):
    """`is_met` is None for a soak that is too short to judge."""

    gateway: Growth
    engine: Growth
    samples: int
    engine_restarts: int
    target_growth_ratio: float
    is_met: bool | None


@dataclass(slots=True)
class Sampler:
    """Looks at our own server; `progress` and `kv_bytes` are asked each time."""

    pid: int
    progress: Callable[[], float]
    kv_bytes: Callable[[], Awaitable[int]]
    interval_s: float = SAMPLE_S
    samples: list[Sample] = field(default_factory=list)
    engine_restarts: int = 0
    _engine_pid: int | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while len(self.samples) < MAX_SAMPLES:
            await self.look()
            await asyncio.sleep(self.interval_s)

    async def look(self) -> None:
        """One sample."""
        engine_pid = await asyncio.to_thread(_child_of, self.pid)
        if engine_pid is not None and self._engine_pid not in (None, engine_pid):
            self.engine_restarts += 1
        self._engine_pid = engine_pid or self._engine_pid
        engine_bytes = None if engine_pid is None else footprint_bytes(engine_pid)
        gateway_bytes = footprint_bytes(self.pid)
        kv_bytes = await self.kv_bytes()
        self.samples.append(Sample(self.progress(), gateway_bytes, engine_bytes, kv_bytes))


def interval_of(minutes: float | None) -> float:
    """Seconds between two samples."""
    return SAMPLE_S if minutes is None else max(SAMPLE_S, minutes * 60 / (MAX_SAMPLES - 1))


def memory_of(
    samples: Sequence[Sample], engine_restarts: int, minutes: float | None
) -> Memory | None:
    """None where the system did not tell, or too few samples were taken to compare."""
    warm = [sample for sample in samples if WARM <= sample.progress < 2 * WARM]
    end = [sample for sample in samples if sample.progress >= END]
    kv_growth = int(_median([s.kv_bytes for s in end]) - _median([s.kv_bytes for s in warm]))
    gateway = _growth(
        [s.gateway_bytes for s in warm],
        [s.gateway_bytes for s in end],
        [s.gateway_bytes for s in samples],
        kv_bytes=0,
    )
    engine = _growth(
        [s.engine_bytes for s in warm],
        [s.engine_bytes for s in end],
        [s.engine_bytes for s in samples],
        kv_bytes=kv_growth,
    )
    if gateway is None or engine is None:
        return None
    is_met = max(gateway.growth_ratio, engine.growth_ratio) <= TARGET_GROWTH
    return Memory(
        gateway=gateway,
        engine=engine,
        samples=len(samples),
        engine_restarts=engine_restarts,
        target_growth_ratio=TARGET_GROWTH,
        is_met=is_met if minutes is not None and minutes >= TARGET_MINUTES else None,
    )


def _growth(
    warm: Sequence[int | None],
    end: Sequence[int | None],
    every: Sequence[int | None],
    kv_bytes: int,
) -> Growth | None:
    warm_known, end_known = _known(warm), _known(end)
    if not (warm_known and end_known):
        return None
    warm_bytes, end_bytes = int(median(warm_known)), int(median(end_known))
    growth_bytes = end_bytes - warm_bytes
    return Growth(
        warm_bytes=warm_bytes,
        end_bytes=end_bytes,
        peak_bytes=max(_known(every)),
        growth_bytes=growth_bytes,
        kv_bytes=kv_bytes,
        growth_ratio=round((growth_bytes - kv_bytes) / warm_bytes, 4),
    )


def _known(values: Sequence[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _median(values: Sequence[int]) -> float:
    return median(values) if values else 0.0


def _child_of(pid: int) -> int | None:
    """The engine, the gateway's only child; the youngest, should one just be taking its place."""
    return max((p.pid for p in processes().values() if p.parent_pid == pid), default=None)
