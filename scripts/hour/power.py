"""Watts while idle and while decoding, and joules per token, as powermetrics estimates them.

A part of `scripts/first_hour.py`. powermetrics needs root. It runs idle first, then beside a bench
that says when its streams decoded; only samples that lie within count. The figures are those of
the chip (CPU, GPU, Neural Engine), not of the wall. Must not know how rates are measured. Format:
powermetrics(1), `-f plist`: property lists, NUL-separated; the keys inside are from what others
read of them, not seen on a Mac by us, so what is not there is said and nothing is made up.
"""

import os
import plistlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from xml.parsers.expat import ExpatError

from scripts.hour.parts import Skip, asked, at, number
from scripts.hour.run import Beside, Run

INTERVAL_S = 1.0
MIN_SAMPLES = 3
IDLE_SAMPLES = 10
SPARE_S = 10.0
NAMED_KEYS = 8


@dataclass(frozen=True)
class Sample:
    """One second or so; `at_s` is the whole second, since 1970, in which it ended."""

    at_s: float
    elapsed_s: float
    chip_w: float
    gpu_w: float | None


def measure_here(load: Sequence[str], run: Run, beside: Beside, limit_s: float) -> object:
    """On this machine. Raises Skip without powermetrics or root."""
    program = shutil.which("powermetrics")
    if program is None:
        raise Skip("there is no powermetrics here: only a Mac has it")
    if os.geteuid() != 0:
        raise Skip("powermetrics needs root: sudo scripts/first_hour --only power")
    return measure(program, load, run, beside, limit_s)


def measure(
    program: str, load: Sequence[str], run: Run, beside: Beside, limit_s: float
) -> dict[str, object]:
    """`load` prints the report of a `verger bench rates` of one batch. Raises Skip or Fail."""
    done = run(_command(program, IDLE_SAMPLES), IDLE_SAMPLES * INTERVAL_S + SPARE_S)
    if done.status != 0:
        raise Skip(f"powermetrics failed: {done.reason}")
    idle = samples_of(done.out.encode())
    with TemporaryDirectory(prefix="verger-first-hour-") as folder:
        file = Path(folder) / "power.plists"
        with beside(_command(program, round((limit_s + SPARE_S) / INTERVAL_S)), file):
            rates = asked(run, load, limit_s)
        samples = samples_of(file.read_bytes())
    return report(idle, samples, rates)


def report(idle: Sequence[Sample], samples: Sequence[Sample], rates: object) -> dict[str, object]:
    """From samples to figures. Raises Skip where there are too few."""
    tok_s = number(rates, "decode", 0, "tok_s")
    began_s = number(rates, "decode", 0, "runs", 0, "began_s")
    ended_s = number(rates, "decode", 0, "runs", 0, "ended_s")
    if tok_s is None or began_s is None or ended_s is None:
        raise Skip("the bench measured no decoding")
    active = [one for one in samples if is_within(one, began_s, ended_s)]
    if len(idle) < MIN_SAMPLES or len(active) < MIN_SAMPLES:
        raise Skip(
            f"powermetrics gave {len(idle)} samples idle and {len(active)} in the "
            f"{ended_s - began_s:.1f} s of decoding: {MIN_SAMPLES} are needed of each"
        )
    idle_w, active_w = _chip_w(idle), _chip_w(active)
    return {
        "idle_w": round(idle_w, 2),
        "active_w": round(active_w, 2),
        "active_gpu_w": _gpu_w(active),
        "batch": at(rates, "decode", 0, "batch"),
        "tok_s": round(tok_s, 2),
        "j_per_token": round(active_w / tok_s, 4),
        "j_per_token_above_idle": round((active_w - idle_w) / tok_s, 4),
        "idle_samples": len(idle),
        "active_samples": len(active),
        "of": "the chip, as powermetrics estimates it; not the wall",
    }


def is_within(sample: Sample, began_s: float, ended_s: float) -> bool:
    """Whether all of it is, whichever part of its second it ended in."""
    return began_s <= sample.at_s - sample.elapsed_s and sample.at_s + 1 <= ended_s


def samples_of(printed: bytes) -> list[Sample]:
    """What powermetrics printed; the last may be cut off. Raises Skip for another format."""
    samples = []
    for text in printed.split(b"\0"):
        try:
            sample = plistlib.loads(text.strip()) if text.strip() else None
        except (plistlib.InvalidFileException, ExpatError, ValueError):
            continue
        if sample is not None:
            samples.append(_sample(sample))
    return samples


def _sample(said: object) -> Sample:
    at_time, elapsed_ns = at(said, "timestamp"), number(said, "elapsed_ns")
    chip_mw = number(said, "processor", "combined_power")
    if not isinstance(at_time, datetime) or elapsed_ns is None or chip_mw is None:
        raise Skip(f"powermetrics says no timestamp, elapsed_ns and combined_power: {_keys(said)}")
    gpu_mw = number(said, "processor", "gpu_power")
    return Sample(
        at_time.replace(tzinfo=UTC).timestamp(),
        elapsed_ns / 1e9,
        chip_mw / 1000,
        None if gpu_mw is None else gpu_mw / 1000,
    )


def _keys(said: object) -> str:
    """What there is instead."""
    outer = sorted(said) if isinstance(said, dict) else []
    processor = at(said, "processor")
    inner = sorted(processor) if isinstance(processor, dict) else []
    return f"it has {outer[:NAMED_KEYS]}, and in processor {inner[:NAMED_KEYS]}"


def _chip_w(samples: Sequence[Sample]) -> float:
    return mean(one.chip_w for one in samples)


def _gpu_w(samples: Sequence[Sample]) -> float | None:
    known = [one.gpu_w for one in samples if one.gpu_w is not None]
    return round(mean(known), 2) if len(known) == len(samples) else None


def _command(program: str, samples: int) -> list[str]:
    interval = ["-i", f"{INTERVAL_S * 1000:.0f}", "-n", str(samples)]
    return [program, "--samplers", "cpu_power,gpu_power", "-f", "plist", "-b", "1", *interval]
