"""`verger bench rates` against a server whose rate is known, one that refuses, and the real one."""

import asyncio
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.harmony_text import byte_vocabulary
from verger.bench import loopback, rates
from verger.bench.chat import Target
from verger.bench.children import BenchError, free_port
from verger.bench.client import Endpoint
from verger.bench.rates_report import RatesPlan, RatesReport
from verger.cli.bench_shared import subject
from verger.cli.machine import has_engine

pytestmark = pytest.mark.process
LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "PAUSE_S", 0.0)


def plan(port: int, contexts: list[int], batches: list[int]) -> RatesPlan:
    return RatesPlan(
        own=None,
        running=Target(Endpoint("127.0.0.1", port, "/v1"), loopback.PACED),
        model=loopback.PACED,
        vocabulary=byte_vocabulary(),
        has_models_vocabulary=False,
        seed=1,
        contexts=contexts,
        batches=batches,
        tokens=24,
        repeats=1,
    )


@asynccontextmanager
async def paced() -> AsyncIterator[int]:
    port = free_port()
    serving = asyncio.create_task(loopback.serve(port), name="provider")
    await asyncio.sleep(0)
    try:
        yield port
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def refusing(status: str) -> AsyncIterator[int]:
    """Answers as the paced one, but a long body with that status."""
    async with paced() as behind:

        async def pass_on(reader: StreamReader, writer: StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head)
            length = int(found[1]) if found else 0
            body = await reader.readexactly(length)
            if length > 3000:
                writer.write(f"HTTP/1.1 {status} No\r\ncontent-length: 4\r\n\r\nlong".encode())
            else:
                await converse(head + body, behind, writer)
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]


async def converse(request: bytes, port: int, writer: StreamWriter) -> None:
    """Pass one request on, and what is answered back."""
    reader, behind = await asyncio.open_connection("127.0.0.1", port)
    behind.write(request)
    part = b""
    while not part.endswith((b"0\r\n\r\n", b"}]}")):
        part = await reader.read(65_536)
        writer.write(part)
        await writer.drain()
    behind.close()
    await behind.wait_closed()


async def measured(asked: RatesPlan) -> RatesReport:
    async with asyncio.timeout(LIMIT_S):
        return await rates.measure(asked, lambda text: None)


def test_the_rates_of_a_server_at_a_known_pace_are_found() -> None:
    async def run() -> RatesReport:
        async with paced() as port:
            return await measured(plan(port, [500], [1, 3]))

    report = asyncio.run(run())
    assert [(one.batch, one.context_tokens) for one in report.decode] == [(1, 500), (3, 500)]
    for one in report.decode:
        assert one.stream_tok_s == pytest.approx(loopback.PACE_TOK_S, rel=0.1)
        assert one.tok_s == pytest.approx(one.batch * loopback.PACE_TOK_S, rel=0.1)
        assert one.itl_ms == pytest.approx(1000 / loopback.PACE_TOK_S, rel=0.2)
    assert (report.skipped, report.load) == ([], None)
    assert report.prefill[0].context_tokens == 500


@pytest.mark.parametrize("status", ["400", "429", "503"])
def test_what_the_server_refuses_is_skipped_with_its_words(status: str) -> None:
    async def run() -> RatesReport:
        async with refusing(status) as port:
            return await measured(plan(port, [500, 4000], [1]))

    report = asyncio.run(run())
    assert [one.context_tokens for one in report.decode] == [500]
    (skipped,) = report.skipped
    assert (skipped.context_tokens, skipped.batch, skipped.reason) == (
        4000,
        None,
        f"{status}: long",
    )


def test_a_server_that_breaks_ends_the_measurement() -> None:
    async def run() -> RatesReport:
        async with refusing("500") as port:
            return await measured(plan(port, [500, 4000], [1]))

    with pytest.raises(BenchError, match="a request failed: 500: long"):
        asyncio.run(run())


def test_streams_that_do_not_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 tokens come in half a second; so long is waited for, and not for less."""
    monkeypatch.setattr(rates, "WARM_UP_TOKENS", 24)

    async def run() -> RatesReport:
        async with paced() as port:
            return await measured(plan(port, [500], [1]))

    monkeypatch.setattr(rates, "DECODE_LIMIT_S", 10.0)
    assert len(asyncio.run(run()).decode) == 1
    monkeypatch.setattr(rates, "DECODE_LIMIT_S", 0.2)
    with pytest.raises(BenchError, match="the streams did not end within 0 s"):
        asyncio.run(run())


@pytest.mark.mlx
@pytest.mark.skipif(not has_engine(), reason="the server needs the engine")
def test_nano_is_measured_from_its_start_on() -> None:
    asked = subject(None, None, None, None, rows=20)
    nano = RatesPlan(
        own=asked.own,
        running=None,
        model=asked.model,
        vocabulary=asked.vocabulary,
        has_models_vocabulary=True,
        seed=1,
        contexts=[300, 32_000],
        batches=[1, 4],
        tokens=32,
        repeats=1,
    )
    report = asyncio.run(measured(nano))
    assert report.load is not None
    assert report.load.engine_s is not None
    assert report.load.ready_s > report.load.engine_s > 0
    assert [one.batch for one in report.decode] == [1, 4]
    assert all(300 < one.prompt_tokens < 556 for one in report.decode)
    assert report.prefill[0].tok_s > 0
    assert [one.reason for one in report.skipped] == ["the model's context is 16384 tokens"]
