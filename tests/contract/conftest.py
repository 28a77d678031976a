"""Fixtures of the contract tests: a server process that plays a script, one for each module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.live import Live, playing


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared_live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with playing(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
def live(shared_live: Live) -> Iterator[Live]:
    """The shared server; a test that received something wrong fails."""
    yield shared_live
    shared_live.traffic.assert_valid()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Live]:
    """One row, and a server that a test may kill."""
    with playing(tmp_path, "--max-rows", "1") as live:
        yield live
