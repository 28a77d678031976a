"""The status: what follows from the statistics, and what it says before there are any."""

import json

import pytest
from msgspec.structs import asdict, replace

from verger.api.status import (
    DISK_NOT_WANTED,
    Admission,
    GatewayFacts,
    KeyActivity,
    Lan,
    encode_status,
    status_of,
)
from verger.messages import CacheStats, PrefillStats, Stats

LAN = Lan(backend="zeroconf", name="office-mini-2", interfaces=("eth0",), off_reason=None)
ADMISSION = Admission(
    rule="forecast",
    ttft_objective_s=10.0,
    max_wait_s=120.0,
    longest_wait_s=3.5,
    answered_at_once=30,
    queued=31,
    spilled=33,
    refused=32,
    scored=33,
    median_error=0.08,
    wrong_decisions=None,
    prompt_tokens_per_s=700.0,
    step_ms=33.3,
)
FACTS = GatewayFacts(
    id="6b0f2b1e-3a5d-4c63-9a0e-0c7f5a1d2e3f",
    name="office-mini",
    version="0.1.0",
    model="m",
    state="ready",
    uptime_s=1.23456,
    start_reason="power",
    cautious=True,
    next_probe_s=None,
    lan=LAN,
    admission=ADMISSION,
    max_rows=16,
    queued=3,
    target_itl_ms=250,
    has_cache=True,
    has_tls=True,
    has_disk=True,
    needs_key=True,
    keys=[KeyActivity(name="ada", tenant="office", running=1, requests=9)],
)
CACHE = CacheStats(
    nodes=11,
    bytes=12,
    limit_bytes=13,
    asked_tokens=200,
    cached_tokens=150,
    evictions=16,
    preemptions=17,
    token_bytes=2048,
    window_bytes=260_096,
    background_tokens=18,
    disk_files=19,
    disk_bytes=20,
    disk_written_bytes=21,
    disk_read_bytes=22,
)
PREFILL = PrefillStats(
    target_itl_s=0.25,
    chunk_tokens=96,
    step_s=0.2,
    best_tokens_s=700.04,
    efficiency=0.81234,
)
STATS = Stats(1, 2, 3, 4, 5, 6, 7, 8, CACHE, PREFILL, 9)


def test_every_figure_stands_in_its_place() -> None:
    assert json.loads(encode_status(status_of(FACTS, STATS))) == {
        "schema_version": 1,
        "id": "6b0f2b1e-3a5d-4c63-9a0e-0c7f5a1d2e3f",
        "name": "office-mini",
        "version": "0.1.0",
        "model": "m",
        "state": "ready",
        "uptime_s": 1.235,
        "start_reason": "power",
        "cautious": True,
        "next_probe_s": None,
        "lan": {
            "backend": "zeroconf",
            "name": "office-mini-2",
            "interfaces": ["eth0"],
            "off_reason": None,
        },
        "tls": True,
        "rows": {"max": 16, "running": 1, "waiting": 2, "queued": 3},
        "tokens": {"prefilled": 4, "decoded": 5, "background": 18},
        "cache": {
            "enabled": True,
            "nodes": 11,
            "bytes": 12,
            "limit_bytes": 13,
            "asked_tokens": 200,
            "cached_tokens": 150,
            "hit_ratio": 0.75,
            "evictions": 16,
            "token_bytes": 2048,
            "window_bytes": 260_096,
            "preemptions": 17,
            "disk": {
                "files": 19,
                "bytes": 20,
                "written_bytes": 21,
                "read_bytes": 22,
                "off_reason": None,
            },
        },
        "prefill": {
            "target_itl_ms": 250.0,
            "chunk_tokens": 96,
            "step_ms": 200.0,
            "best_tokens_per_s": 700.0,
            "efficiency": 0.812,
            "meets_target": True,
            "note": None,
        },
        "admission": asdict(ADMISSION),
        "memory": {"kv_bytes": 6, "active_bytes": 7, "peak_bytes": 8, "buffer_bytes": 9},
        "needs_key": True,
        "keys": [{"name": "ada", "tenant": "office", "running": 1, "requests": 9}],
    }


def test_before_the_first_statistics_there_are_zeros_and_no_ratio() -> None:
    status = status_of(replace(FACTS, state="starting"), None)

    assert (status.rows.running, status.rows.max, status.tokens.prefilled) == (0, 16, 0)
    assert status.cache.hit_ratio is None
    assert (status.prefill.target_itl_ms, status.prefill.note) == (250, None)


def test_a_target_that_cannot_be_met_is_said_in_a_sentence() -> None:
    prefill = replace(PREFILL, meets_target=False, step_s=0.4567)
    note = status_of(FACTS, replace(STATS, prefill=prefill)).prefill.note

    assert note is not None
    assert "takes 456.7 ms" in note
    assert "target_itl_ms = 250:" in note


@pytest.mark.parametrize(
    ("has_disk", "told", "expected"),
    [(True, "the disk is full", "the disk is full"), (False, "", DISK_NOT_WANTED)],
)
def test_a_disk_that_is_off_has_a_reason(has_disk: bool, told: str, expected: str) -> None:
    stats = replace(STATS, cache=replace(CACHE, disk_off_reason=told))
    disk = status_of(replace(FACTS, has_disk=has_disk), stats).cache.disk

    assert disk.off_reason == expected
