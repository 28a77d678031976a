"""Fixtures of the gateway's tests: all of them run on asyncio."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.gateway.harness import Gateway, PlayedEngine, ready_gateway

FAULTS = pytest.StashKey[list[str]]()
"""The table of what became of each fault of a provider, for the end of the test output."""


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if table := config.stash.get(FAULTS, None):
        terminalreporter.section("faults of cloud providers, streamed and whole")
        for line in table:
            terminalreporter.write_line(line)


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
