"""Fixtures of the gateway's tests: all of them run on asyncio."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.gateway.harness import Gateway, PlayedEngine, ready_gateway


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Gateway, PlayedEngine]]:
    """Shared, because stopping a server takes uvicorn a third of a second."""
    async with ready_gateway(tmp_path_factory.mktemp("served")) as pair:
        yield pair


@pytest.fixture
def served(shared: tuple[Gateway, PlayedEngine]) -> Iterator[tuple[Gateway, PlayedEngine]]:
    """The shared server; a test that makes it send something wrong fails."""
    yield shared
    shared[0].traffic.assert_valid()


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[tuple[Gateway, PlayedEngine]]:
    """For tests that kill the engine or stop the server."""
    async with ready_gateway(tmp_path) as pair:
        yield pair
