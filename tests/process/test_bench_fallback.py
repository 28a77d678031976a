"""`verger bench fallback` on a small scale: a real server, a real provider, every number there."""

import asyncio

import pytest

from verger.bench.children import BenchError, free_port
from verger.bench.client import Endpoint
from verger.bench.fallback import Way, measure
from verger.bench.fallback_report import FallbackPlan
from verger.bench.loopback import PACE_TOK_S
from verger.cli.machine import has_engine

pytestmark = pytest.mark.process


@pytest.mark.skipif(not has_engine(), reason="the server needs the engine")
def test_everything_is_measured() -> None:
    told: list[str] = []
    report = asyncio.run(measure(FallbackPlan(pairs=3, streams=2, tokens=5), told.append))
    assert (report.pairs, report.streams, len(told)) == (3, 2, 4)
    assert report.latency.through_p50_ms > 0
    assert [flow.pace_tok_s for flow in report.flows] == [None, PACE_TOK_S]
    assert [flow.tokens for flow in report.flows] == [10, 10]
    assert all(flow.through_tok_s > 0 for flow in report.flows)


def test_nobody_there_is_one_clear_error() -> None:
    way = Way(Endpoint("127.0.0.1", free_port(), "/v1"))
    with pytest.raises(BenchError, match="an answer failed"):
        asyncio.run(way.ask("fast", 1))
