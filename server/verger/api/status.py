"""GET /v1/status: what the server is doing, as one struct, and how it follows from the statistics.

Built by the status endpoint from the engine's last Stats and what the gateway knows. Pure; must not
know HTTP. Whatever shows the status shows this struct.
"""

import msgspec
from msgspec import Struct

from verger.messages import PrefillStats, Stats

SCHEMA_VERSION = 1
NO_STATS = Stats(0, 0, 0, 0, 0, 0, 0, 0)
"""Of an engine that has not spoken yet."""
DISK_NOT_WANTED = "the configuration keeps no prefixes on disk"

_encoder = msgspec.json.Encoder()


class Rows(Struct, frozen=True, kw_only=True):
    """Sequences: `running` and `waiting` in the engine, `queued` in the gateway."""

    max: int
    running: int
    waiting: int
    queued: int


class TokenCounts(Struct, frozen=True, kw_only=True):
    """Computed since the engine's start; `prefilled` includes `background`."""

    prefilled: int
    decoded: int
    background: int


class Disk(Struct, frozen=True, kw_only=True):
    """`off_reason` is why nothing is written; null while it is."""

    files: int
    bytes: int
    written_bytes: int
    read_bytes: int
    off_reason: str | None


class Cache(Struct, frozen=True, kw_only=True):
    """Prefixes that are kept. `bytes` is theirs alone, `limit_bytes` for running rows as well.
    A position takes `token_bytes`, a checkpoint `window_bytes` besides.

    `hit_ratio` is the part of `asked_tokens` that was cached; null when none were asked for."""

    enabled: bool
    nodes: int
    bytes: int
    limit_bytes: int
    asked_tokens: int
    cached_tokens: int
    hit_ratio: float | None
    token_bytes: int
    window_bytes: int
    evictions: int
    preemptions: int
    disk: Disk


class Prefill(Struct, frozen=True, kw_only=True):
    """How prompts are cut beside running streams; `note` says what a person should know of it."""

    target_itl_ms: float
    chunk_tokens: int
    step_ms: float
    best_tokens_per_s: float
    efficiency: float
    meets_target: bool
    note: str | None


class Memory(Struct, frozen=True, kw_only=True):
    """Of the engine's device; buffers are free, and kept for the arrays to come."""

    kv_bytes: int
    active_bytes: int
    peak_bytes: int
    buffer_bytes: int


class Admission(Struct, frozen=True, kw_only=True):
    """How requests are let in. Times of a first token are forecast; `rule` says what decides. Of
    the last `scored` of them, `median_error` is relative, and `wrong_decisions` the part that stood
    on the wrong side of `ttft_objective_s`; null when there were none.

    `answered_at_once`, `queued`, `spilled` and `refused` count decisions since the start."""

    rule: str
    ttft_objective_s: float
    max_wait_s: float
    longest_wait_s: float
    answered_at_once: int
    queued: int
    spilled: int
    refused: int
    scored: int
    median_error: float | None
    wrong_decisions: float | None
    prompt_tokens_per_s: float | None
    step_ms: float | None


class Lan(Struct, frozen=True, kw_only=True):
    """How the network learns of the server: the name under which it is advertised and where;
    `off_reason` is why it is not."""

    backend: str
    name: str | None
    interfaces: tuple[str, ...]
    off_reason: str | None


class KeyActivity(Struct, frozen=True, kw_only=True):
    """What a key's holder does: `requests` since the server's start, `running` among them."""

    name: str
    tenant: str
    running: int
    requests: int


class Status(Struct, frozen=True, kw_only=True):
    """The whole answer. `keys` are those that whoever asks may see."""

    schema_version: int = SCHEMA_VERSION
    id: str
    name: str
    version: str
    model: str
    state: str
    uptime_s: float
    start_reason: str
    cautious: bool
    next_probe_s: float | None
    lan: Lan
    tls: bool
    rows: Rows
    tokens: TokenCounts
    cache: Cache
    prefill: Prefill
    admission: Admission
    memory: Memory
    needs_key: bool
    keys: list[KeyActivity]


class GatewayFacts(Struct, frozen=True, kw_only=True):
    """What the engine's statistics do not say."""

    id: str
    name: str
    version: str
    model: str
    state: str
    uptime_s: float
    start_reason: str
    cautious: bool
    next_probe_s: float | None
    lan: Lan
    admission: Admission
    max_rows: int
    queued: int
    target_itl_ms: float
    has_cache: bool
    has_disk: bool
    needs_key: bool
    keys: list[KeyActivity]
    has_tls: bool


def status_of(facts: GatewayFacts, stats: Stats | None) -> Status:
    """`stats` is None until the engine has sent some."""
    stats = stats or NO_STATS
    return Status(
        id=facts.id,
        name=facts.name,
        version=facts.version,
        model=facts.model,
        state=facts.state,
        uptime_s=round(facts.uptime_s, 3),
        start_reason=facts.start_reason,
        cautious=facts.cautious,
        next_probe_s=_rounded_s(facts.next_probe_s),
        lan=facts.lan,
        tls=facts.has_tls,
        rows=Rows(
            max=facts.max_rows,
            running=stats.running,
            waiting=stats.waiting,
            queued=facts.queued,
        ),
        tokens=TokenCounts(
            prefilled=stats.prefill_tokens,
            decoded=stats.decode_tokens,
            background=stats.cache.background_tokens,
        ),
        cache=_cache(facts, stats),
        prefill=_prefill(facts.target_itl_ms, stats.prefill),
        admission=facts.admission,
        memory=Memory(
            kv_bytes=stats.kv_bytes,
            active_bytes=stats.active_bytes,
            peak_bytes=stats.peak_bytes,
            buffer_bytes=stats.buffer_bytes,
        ),
        needs_key=facts.needs_key,
        keys=facts.keys,
    )


def encode_status(status: Status) -> bytes:
    """Body of GET /v1/status."""
    return _encoder.encode(status)


def _cache(facts: GatewayFacts, stats: Stats) -> Cache:
    cache = stats.cache
    not_wanted = None if facts.has_disk else DISK_NOT_WANTED
    return Cache(
        enabled=facts.has_cache,
        nodes=cache.nodes,
        bytes=cache.bytes,
        limit_bytes=cache.limit_bytes,
        asked_tokens=cache.asked_tokens,
        cached_tokens=cache.cached_tokens,
        hit_ratio=_ratio(cache.cached_tokens, cache.asked_tokens),
        evictions=cache.evictions,
        token_bytes=cache.token_bytes,
        window_bytes=cache.window_bytes,
        preemptions=cache.preemptions,
        disk=Disk(
            files=cache.disk_files,
            bytes=cache.disk_bytes,
            written_bytes=cache.disk_written_bytes,
            read_bytes=cache.disk_read_bytes,
            off_reason=cache.disk_off_reason or not_wanted,
        ),
    )


def _prefill(target_itl_ms: float, prefill: PrefillStats) -> Prefill:
    step_ms = round(prefill.step_s * 1000, 1)
    note = (
        f"Even a step with the smallest chunk worth computing takes {step_ms:g} ms, more than "
        f"target_itl_ms = {target_itl_ms:g}: streams pause that long while a prompt is computed."
    )
    return Prefill(
        target_itl_ms=target_itl_ms,
        chunk_tokens=prefill.chunk_tokens,
        step_ms=step_ms,
        best_tokens_per_s=round(prefill.best_tokens_s, 1),
        efficiency=round(prefill.efficiency, 3),
        meets_target=prefill.meets_target,
        note=None if prefill.meets_target else note,
    )


def _rounded_s(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
