"""The figures of the first hour, one line each, out of the parts' answers: pure.

Used by `page.py`. An answer is JSON of another program, so what is not in it is left
out, not an error. Must not know how the page looks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from scripts.hour.parts import at, listed, number

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Row:
    """`is_met` is None where there is no target."""

    what: str
    figure: str
    is_met: bool | None = None


def rows_of(part: str, answer: object) -> list[Row]:
    """Of a part's answer, in order; none for a part of which nothing is shown."""
    make = ROWS.get(part)
    return [] if make is None or answer is None else list(make(answer))


def _fit(answer: object) -> Iterator[Row]:
    for model in listed(answer, "models"):
        needed, state = number(model, "needed_bytes"), at(model, "state")
        fits = "fits" if at(model, "is_fitting") else "does not fit"
        size = "" if needed is None else f", needs {needed / GIB:.1f} GiB"
        yield Row(f"fit: {at(model, 'id')}", f"{fits}{size}, {state}")


def _doctor(answer: object) -> Iterator[Row]:
    for finding in listed(answer, "findings"):
        if at(finding, "level") in ("fail", "warn"):
            yield Row(f"doctor: {at(finding, 'check')}", f"{at(finding, 'level')}: {_why(finding)}")


def _rates(answer: object) -> Iterator[Row]:
    ready_s, engine_s = number(answer, "load", "ready_s"), number(answer, "load", "engine_s")
    if ready_s is not None:
        engine = "" if engine_s is None else f", of it {engine_s:.1f} s in the engine"
        device = at(answer, "load", "device")
        yield Row("load: start to /readyz", f"{ready_s:.1f} s{engine}, on {device}")
    for one in listed(answer, "prefill"):
        tok_s, ttft_s = number(one, "tok_s"), number(one, "ttft_s")
        if tok_s is not None and ttft_s is not None:
            what = f"prefill of {at(one, 'context_tokens')} tokens"
            yield Row(what, f"{tok_s:.0f} tok/s, {ttft_s:.2f} s to the first token")
    for one in listed(answer, "decode"):
        tok_s, each, itl_ms = (number(one, key) for key in ("tok_s", "stream_tok_s", "itl_ms"))
        if tok_s is not None and each is not None and itl_ms is not None:
            streams = _streams(at(one, "batch"))
            what = f"decode, {streams} behind {at(one, 'context_tokens')} tokens"
            yield Row(what, f"{tok_s:.0f} tok/s, {each:.1f} each, {itl_ms:.0f} ms between tokens")
    for one in listed(answer, "skipped"):
        batch = at(one, "batch")
        streams = "prefill" if batch is None else _streams(batch)
        what = f"rates: {streams} at {at(one, 'context_tokens')} tokens"
        yield Row(what, f"skipped: {at(one, 'reason')}")


def _overhead(answer: object) -> Iterator[Row]:
    for one in listed(answer, "scenarios"):
        ratio, target = number(one, "decode_ratio", "median"), number(one, "target_ratio")
        if ratio is not None and target is not None:
            what = f"overhead: {_streams(at(one, 'name'))} ÷ bare loop"
            yield Row(what, f"{ratio:.2f}, at least {target:.2f}", ratio >= target)


def _stall(answer: object) -> Iterator[Row]:
    p99_ms, allowed_ms = number(answer, "disturbed", "p99_ms"), number(answer, "allowed_ms")
    if p99_ms is not None and allowed_ms is not None:
        figure = f"p99 {p99_ms:.0f} ms, at most {allowed_ms:.0f}"
        yield Row("stall: gaps beside a prompt", figure, _verdict(at(answer, "is_gap_met")))
    if (ratio := number(answer, "rate_ratio")) is not None:
        what = "stall: prefill beside streams ÷ alone"
        yield Row(what, f"{ratio:.2f}", _verdict(at(answer, "is_rate_met")))


def _replay(answer: object) -> Iterator[Row]:
    for one in listed(answer, "scenarios"):
        ratio, target = number(one, "ratio"), number(one, "target_ratio")
        if ratio is not None and target is not None:
            what = f"replay: {at(one, 'name')}, computed ÷ least"
            figure = f"{ratio:.3f}, at most {target:.2f}"
            yield Row(what, figure, _verdict(at(one, "is_met")))
    for one in listed(answer, "second_turns"):
        if (ratio := number(one, "ratio")) is not None:
            what = f"replay: second turn ÷ cold, {at(one, 'prompt_tokens')} tokens"
            yield Row(what, f"{ratio:.3f}", _verdict(at(one, "is_met")))


def _fallback(answer: object) -> Iterator[Row]:
    p50_ms, p99_ms = (number(answer, "latency", f"added_{p}_ms") for p in ("p50", "p99"))
    if p50_ms is not None and p99_ms is not None:
        yield Row("fallback: added to a first token", f"p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms")


def _process_type(answer: object) -> Iterator[Row]:
    for other in ("none", "background"):
        if (ratio := number(answer, f"interactive_to_{other}")) is not None:
            yield Row(f"ProcessType: decode as Interactive ÷ {other}", f"{ratio:.2f}")


def _power(answer: object) -> Iterator[Row]:
    idle_w, active_w = number(answer, "idle_w"), number(answer, "active_w")
    joules = number(answer, "j_per_token")
    if idle_w is not None and active_w is not None and joules is not None:
        yield Row("power: idle", f"{idle_w:.1f} W ({at(answer, 'of')})")
        yield Row(
            f"power: {_streams(at(answer, 'batch'))} decoding",
            f"{active_w:.1f} W, {joules:.2f} J per token",
        )


def _memory(answer: object) -> Iterator[Row]:
    is_met = at(answer, "memory", "is_met")
    for name in ("gateway", "engine"):
        keys = ("warm_bytes", "end_bytes", "bounded_bytes")
        warm, end, bounded = (number(answer, "memory", name, key) for key in keys)
        if warm is not None and end is not None:
            grown = "" if not bounded else f", {bounded / MIB:+.0f} MiB by KV and free buffers"
            figure = f"{warm / MIB:.0f} MiB when warm, {end / MIB:.0f} MiB at the end{grown}"
            yield Row(f"memory: {name}", figure, _verdict(is_met))
    requests, minutes = number(answer, "requests"), number(answer, "minutes")
    if requests is not None:
        length = "" if minutes is None else f" in {minutes:g} minutes"
        verdict = _verdict(at(answer, "is_sound"))
        yield Row(f"soak: {requests:.0f} requests{length}", _counts(answer), verdict)
    if isinstance(is_restored := at(answer, "is_restored"), bool):
        found = ", ".join(map(str, listed(answer, "remains"))) or "as before"
        yield Row("soak: the server afterwards", found, is_restored)


def _counts(answer: object) -> str:
    counts = at(answer, "counts")
    return (
        ", ".join(f"{n} {name}" for name, n in counts.items()) if isinstance(counts, dict) else ""
    )


def _bonjour(answer: object) -> Iterator[Row]:
    found = "found" if at(answer, "is_found") else "not found"
    yield Row("Bonjour, from the second machine", f"{found}, by {at(answer, 'by')}")


def _panics(answer: object) -> Iterator[Row]:
    yield Row("panics", _why(at(answer, "now")))


def _streams(count: object) -> str:
    return "1 stream" if count in (1, "1") else f"{count} streams"


def _verdict(told: object) -> bool | None:
    return told if isinstance(told, bool) else None


def _why(finding: object) -> str:
    return str(at(finding, "why") or "")


ROWS: Mapping[str, Callable[[object], Iterator[Row]]] = {
    "fit": _fit,
    "doctor": _doctor,
    "rates": _rates,
    "overhead": _overhead,
    "stall": _stall,
    "replay": _replay,
    "fallback": _fallback,
    "process-type": _process_type,
    "power": _power,
    "memory": _memory,
    "bonjour": _bonjour,
    "panics": _panics,
}
"""Part → its figures."""
