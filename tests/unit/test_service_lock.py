"""Two commands that would change the service: the second is told of the first."""

import os
import signal
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.fake_mac import FakeMac
from tests.forks import forked
from verger.cli import service_mac, setup
from verger.errors import InstallError
from verger.macos.lock import alone
from verger.macos.source import Interpreter
from verger.memory_fit import GIB, MachineMemory

COMMANDS = [
    ["service", "install"],
    ["service", "uninstall"],
    ["service", "start"],
    ["service", "stop"],
    ["service", "restart"],
    ["upgrade"],
    ["setup", "--yes"],
]


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    fake = FakeMac(tmp_path / "mac")
    monkeypatch.setattr(Interpreter, "is_in_a_home", property(lambda p: "Users" in p.prefix.parts))
    monkeypatch.setattr(service_mac, "this_interpreter", lambda: fake.private_python)
    monkeypatch.setattr(service_mac, "this_mac", fake.mac)
    monkeypatch.setattr(setup, "machine_memory", lambda: MachineMemory.of(64 * GIB))
    monkeypatch.setattr(service_mac, "machine_memory", lambda: MachineMemory.of(64 * GIB))
    return fake


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_second_is_told_of_the_first_and_changes_nothing(
    verger: Verger, mac: FakeMac, command: list[str]
) -> None:
    before = mac.snapshot()
    with mac.mac().alone("service install"):
        refused = verger(*command)
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    told = f"is changing the service (verger service install, process {os.getpid()}): let it finish"
    assert told in refused.err
    assert mac.snapshot() == before


def test_who_only_looks_waits_for_nobody(verger: Verger, mac: FakeMac) -> None:
    with mac.mac().alone("setup"):
        assert "not installed" in verger("service", "status").out
        assert verger("service", "install", "--dry-run").status == 0
        assert verger("setup", "--dry-run").status == 0


def test_what_ended_with_an_error_holds_nothing(mac: FakeMac) -> None:
    with pytest.raises(InstallError, match="it broke"), mac.mac().alone("upgrade"):
        raise InstallError("it broke")
    with mac.mac().alone("upgrade"):
        assert mac.layout.lock.stat().st_mode & 0o777 == 0o600


def test_what_was_killed_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    reading, writing = os.pipe()

    def hold() -> None:
        with alone(file, "setup"):
            os.write(writing, b"1")
            signal.pause()

    child = forked(hold)
    try:
        os.read(reading, 1)
        told = f"verger setup, process {child}"
        with pytest.raises(InstallError, match=told), alone(file, "upgrade"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    with alone(file, "upgrade"):
        assert file.read_text().startswith("verger upgrade")


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "kept")
    with pytest.raises(InstallError, match="cannot use"), alone(tmp_path / "lock", "upgrade"):
        pass
    assert (tmp_path / "kept").read_text() == "kept"
