"""The engine's loop: the one thread that listens, schedules, computes and answers.

Started by `__main__` once the model is loaded. Must not know MLX, text, or how rows are chosen.
It reacts to messages only between steps, and the heartbeat comes from this very thread, so that
a hung device shows to the gateway as silence.

    launch k ─ launch k+1 ─ collect k ─ emit k ─ launch k+2 ─ collect k+1 ─ …
              (the device computes k+1 while the host handles k)
"""

import logging
from collections.abc import Callable

from verger.engine.cache_disk import POLL_S, CacheDisk
from verger.engine.prefix_files import SaveOrder
from verger.engine.pressure import KEPT_SHARE, Pressure, ReadPressure, no_pressure
from verger.engine.scheduler import Scheduler
from verger.engine.steps import Edit, Runner
from verger.engine.transport import Connection, ProtocolError
from verger.log import key_values
from verger.messages import (
    CacheStats,
    Cancel,
    Drain,
    FromEngine,
    Heartbeat,
    LookUp,
    Stats,
    Submit,
    ToEngine,
)

logger = logging.getLogger("verger.engine")

HEARTBEAT_S = 1.0
"""Between two heartbeats, also when idle; statistics are sent as often while it computes."""
BLOCKED_S = 0.005
"""Between two looks whether somebody who waits for memory, or for the disk, can go on."""


class Loop:
    """Runs until a Drain has been obeyed; ConnectionClosed and the runner's errors end it too."""

    def __init__(
        self,
        connection: Connection,
        runner: Runner,
        scheduler: Scheduler,
        clock: Callable[[], float],
        disk: CacheDisk | None = None,
        read_pressure: ReadPressure = no_pressure,
    ) -> None:
        self._connection = connection
        self._runner = runner
        self._scheduler = scheduler
        self._clock = clock
        self._disk = disk
        self._read_pressure = read_pressure
        self._pressure = Pressure.NORMAL
        self._next_beat_s = clock()
        self._was_idle = True
        self._is_blocked = False

    def run(self) -> None:
        """Ten lines a step."""
        scheduler = self._scheduler
        while not (scheduler.is_draining and scheduler.is_idle):
            self._drain_inbox()
            if self._disk is not None:
                self._disk.poll()
            if scheduler.must_settle:
                self._collect()
            is_launched = self._launch()
            # What was just launched computes on while the host handles the step before it.
            if scheduler.launched > (1 if is_launched else 0):
                self._collect()
            self._emit()

    def _drain_inbox(self) -> None:
        for message in self._connection.receive(self._idle_s()):
            self._handle(message)

    def _idle_s(self) -> float:
        beat_s = max(0.0, self._next_beat_s - self._clock())
        if self._scheduler.is_idle:
            is_disk_busy = self._disk is not None and self._disk.is_busy
            return min(POLL_S, beat_s) if is_disk_busy else beat_s
        return min(BLOCKED_S, beat_s) if self._is_blocked else 0.0

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self._scheduler.submit(message, self._clock())
            case Cancel():
                self._scheduler.cancel(message.request_id, self._clock())
            case LookUp():
                self._scheduler.look_up(message)
            case Drain():
                self._scheduler.drain(self._clock())
            case _:
                raise ProtocolError(f"{type(message).__name__} while the engine runs")

    def _launch(self) -> bool:
        step = self._scheduler.plan(self._clock())
        for edit in step.edits:
            self._apply(edit)
        self._is_blocked = step.plan.is_empty and not self._scheduler.launched
        if step.plan.is_empty:
            return False
        self._runner.launch(step.plan)
        return True

    def _apply(self, edit: Edit | SaveOrder) -> None:
        if not isinstance(edit, SaveOrder):
            self._runner.apply(edit)
        elif self._disk is not None:
            self._disk.save(edit)

    def _collect(self) -> None:
        sampled = self._runner.collect()
        self._scheduler.settle(sampled, self._runner.step_s, self._clock())

    def _emit(self) -> None:
        frames = self._scheduler.take_frames()
        frames += self._vital_signs()
        if frames:
            self._connection.send(frames)

    def _vital_signs(self) -> list[FromEngine]:
        """Heartbeat when due; statistics with it, and once when the work is done."""
        is_idle, was_idle = self._scheduler.is_idle, self._was_idle
        self._was_idle = is_idle
        signs: list[FromEngine] = []
        if self._clock() >= self._next_beat_s:
            self._next_beat_s = self._clock() + HEARTBEAT_S
            self._relieve()
            signs.append(Heartbeat(self._scheduler.steps))
            if not is_idle:
                signs.append(self._stats())
        if is_idle and not was_idle:
            signs.append(self._stats())
        return signs

    def _relieve(self) -> None:
        """Cached prefixes make room for a system that is short of memory."""
        pressure, kv = self._read_pressure(), self._scheduler.kv
        freed = kv.shrink_cache(int(KEPT_SHARE[pressure] * kv.limit_bytes), self._clock())
        if freed or pressure is not self._pressure:
            self._pressure = pressure
            level = pressure.name.lower()
            logger.warning(key_values(event="memory_pressure", level=level, freed_bytes=freed))

    def _stats(self) -> Stats:
        memory = self._runner.memory()
        return Stats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            steps=self._scheduler.steps,
            prefill_tokens=self._scheduler.prefill_tokens,
            decode_tokens=self._scheduler.decode_tokens,
            kv_bytes=memory.kv_bytes,
            active_bytes=memory.active_bytes,
            peak_bytes=memory.peak_bytes,
            cache=self._cache_stats(),
            prefill=self._scheduler.pacer.stats(),
            buffer_bytes=memory.buffer_bytes,
        )

    def _cache_stats(self) -> CacheStats:
        stats = self._scheduler.cache_stats()
        return stats if self._disk is None else self._disk.stats(stats)
