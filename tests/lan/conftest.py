"""Fixtures of the tests that speak multicast DNS: networks that nothing gets out of."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lan.networks import Host, Office, host, need_namespaces, office
from verger import paths


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def lonely() -> Iterator[Host]:
    """A machine with nothing but loopback."""
    need_namespaces()
    with host() as made:
        yield made


@pytest.fixture
def two_hosts() -> Iterator[Office]:
    """A server and a client on an office's network, and a stranger on another one."""
    need_namespaces()
    with office() as made:
        yield made


@pytest.fixture
def real_model(tmp_path: Path) -> str:
    """A model that is not called nano."""
    return str(shutil.copytree(paths.nano_dir(), tmp_path / "office-model"))
