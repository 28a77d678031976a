"""Fixtures of the client commands' tests: what browsing finds, and a home of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_instance import FakeInstance, fake_instance
from verger.cli import instances
from verger.lan.browse import Found


class Network:
    """What browsing finds; nothing is sent anywhere."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.browsed: list[tuple[float, str]] = []

    def find(self, timeout_s: float, interfaces: str) -> list[Found]:
        self.browsed.append((timeout_s, interfaces))
        return self.found[: instances.MAX_INSTANCES]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """In place of multicast."""
    network = Network()
    monkeypatch.setattr(instances, "find", network.find)
    return network


@pytest.fixture
def instance(network: Network) -> Iterator[FakeInstance]:
    """A server on loopback that is advertised as office-mini."""
    with fake_instance() as instance:
        network.found.append(instance.found())
        yield instance


@pytest.fixture(autouse=True)
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration files of clients lie."""
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return home
