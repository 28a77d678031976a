"""A cloud provider on loopback that does what real ones do at their worst: a real HTTP server.

The model's name says what it plays (`fault_plays`): `bad-json-late` says something first and then
goes wrong, `correct` answers; what follows a dot is ignored (`cut.7`). It counts the tokens that it
has sent, and notices when its client leaves.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.fault_plays import PLAYS, Exchange, Gone, Play

KEY = "sk-of-the-tests"


@dataclass
class FaultProvider:
    """A running one."""

    url: str
    plays: Mapping[str, Play] = field(default_factory=lambda: PLAYS)
    exchanges: list[Exchange] = field(default_factory=list)
    """Chat completions, in the order in which they came."""
    left: asyncio.Queue[Exchange] = field(default_factory=asyncio.Queue)
    """Those whose client has left before the end."""

    def of(self, model: str) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.model == model]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_over = True
        while is_over and (exchange := await _read(reader, writer)) is not None:
            try:
                await self._answer(exchange)
            except (Gone, ConnectionError):
                exchange.is_left = True
                self.left.put_nowait(exchange)
            is_over = exchange.is_over

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.headers.get("authorization") != f"Bearer {KEY}":
            await exchange.refuse(401, '{"error": {"message": "no such key"}}')
        elif exchange.path.endswith("/models"):
            cards = [{"id": name} for name in self.plays]
            await exchange.refuse(200, json.dumps({"data": cards}))
        else:
            self.exchanges.append(exchange)
            await self.plays[exchange.model.partition(".")[0]](exchange)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    """The next request of a connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    request, *lines = head.strip().split("\r\n")
    headers = dict(_header(line) for line in lines)
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    body = json.loads(content) if content else {}
    return Exchange(request.split()[1], headers, body, reader, writer)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


@asynccontextmanager
async def fault_provider(plays: Mapping[str, Play] = PLAYS) -> AsyncIterator[FaultProvider]:
    """Serve until the block is left."""
    provider = FaultProvider("", plays)
    connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[writer] = task
        try:
            await provider.serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            del connections[writer]

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield provider
    finally:
        server.close()
        tasks = list(connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # What was aborted is closed in the loop's next turn.
        await asyncio.sleep(0)
