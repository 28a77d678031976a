"""What gateway and engine hold while a soak runs, and how much that grew once it was warm.

The sampler is run by `soak.py`, the growth is told by `soak_report.py`. What the engine itself
accounts for and bounds is no leak: KV, until its budget is used up, and free buffers that MLX keeps
for the next step. Must not know requests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from msgspec import Struct

from verger.bench.footprint import footprint_bytes
from verger.bench.processes import processes

SAMPLE_S = 0.5
MAX_SAMPLES = 1000
"""A long soak is looked at less often."""
QUARTERS = 4
WARM, END = 1, 3
"""The second quarter, when all that is allocated once has been, is compared with the last."""
TARGET_GROWTH = 0.10
TARGET_MINUTES = 10.0
"""In less time a process has hardly had all its buffers once."""


@dataclass(frozen=True, slots=True)
class Sample:
    """At a fraction of the soak; None where the system does not tell."""

    progress: float
    gateway_bytes: int | None
    engine_bytes: int | None
    bounded_bytes: int
    """Of the engine's: KV and free buffers."""


class Growth(Struct, frozen=True, kw_only=True):
    """Of one process: medians of the quarters of the soak, the second again as what was held when
    warm, the last as at the end. `bounded_bytes` of the growth are KV and free buffers."""

    quarter_bytes: Sequence[int]
    warm_bytes: int
    end_bytes: int
    peak_bytes: int
    growth_bytes: int
    bounded_bytes: int
    growth_ratio: float
    """Of the rest, to what was held when warm."""


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
    """Looks at our own server; `progress` and `bounded_bytes` are asked each time."""

    pid: int
    progress: Callable[[], float]
    bounded_bytes: Callable[[], Awaitable[int]]
    interval_s: float = SAMPLE_S
    samples: list[Sample] = field(default_factory=list)
    engine_restarts: int = 0
    _engine_pid: int | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while len(self.samples) < MAX_SAMPLES:
            await self.look()
            await asyncio.sleep(self.interval_s)

    async def find_engine(self) -> int | None:
        """Its process, if there is one now; counts it if it is another than before."""
        engine_pid = await asyncio.to_thread(_child_of, self.pid)
        if engine_pid is not None and self._engine_pid not in (None, engine_pid):
            self.engine_restarts += 1
        self._engine_pid = engine_pid or self._engine_pid
        return engine_pid

    async def look(self) -> None:
        """One sample."""
        engine_pid = await self.find_engine()
        engine_bytes = None if engine_pid is None else footprint_bytes(engine_pid)
        gateway_bytes = footprint_bytes(self.pid)
        bounded_bytes = await self.bounded_bytes()
        self.samples.append(Sample(self.progress(), gateway_bytes, engine_bytes, bounded_bytes))


def interval_of(minutes: float | None) -> float:
    """Seconds between two samples."""
    return SAMPLE_S if minutes is None else max(SAMPLE_S, minutes * 60 / (MAX_SAMPLES - 1))


def memory_of(
    samples: Sequence[Sample], engine_restarts: int, minutes: float | None
) -> Memory | None:
    """None where the system did not tell, or a quarter is without a sample."""
    gateway = _growth(samples, [sample.gateway_bytes for sample in samples])
    engine = _growth(samples, [sample.engine_bytes for sample in samples], is_engine=True)
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
    samples: Sequence[Sample], held: Sequence[int | None], *, is_engine: bool = False
) -> Growth | None:
    quarters = _medians(samples, held)
    if quarters is None:
        return None
    bounded_bytes = 0
    if is_engine and (bounded := _medians(samples, [one.bounded_bytes for one in samples])):
        bounded_bytes = bounded[END] - bounded[WARM]
    growth_bytes = quarters[END] - quarters[WARM]
    return Growth(
        quarter_bytes=quarters,
        warm_bytes=quarters[WARM],
        end_bytes=quarters[END],
        peak_bytes=max(one for one in held if one is not None),
        growth_bytes=growth_bytes,
        bounded_bytes=bounded_bytes,
        growth_ratio=round((growth_bytes - bounded_bytes) / quarters[WARM], 4),
    )


def _medians(samples: Sequence[Sample], values: Sequence[int | None]) -> list[int] | None:
    """Of each quarter; what comes after the end counts to the last one."""
    found: list[list[int]] = [[] for _ in range(QUARTERS)]
    for sample, value in zip(samples, values, strict=True):
        if value is not None:
            found[min(int(sample.progress * QUARTERS), QUARTERS - 1)].append(value)
    return [int(median(quarter)) for quarter in found] if all(found) else None


def _child_of(pid: int) -> int | None:
    """The engine, the gateway's only child; the youngest, should one just be taking its place."""
    return max((p.pid for p in processes().values() if p.parent_pid == pid), default=None)
