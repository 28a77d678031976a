"""`verger setup` from a fresh Mac to an answer: launchd and dscl are stand-ins, the rest is real.

The model that fits is the embedded one under another name, from a hub on loopback; the office's
network is the loopback interface.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.fake_hub import REPOSITORY, FakeHub, fake_hub
from tests.fake_machine import FakeMachine
from tests.live_mac import LiveMac
from verger import paths
from verger.bench.children import free_port
from verger.cli import service_mac, setup, setup_answer
from verger.connect.address import make_address
from verger.macos.source import Interpreter
from verger.memory_fit import MachineMemory

pytest.importorskip("huggingface_hub")
pytestmark = [pytest.mark.process, pytest.mark.mlx]

TINY = f"""
id = "tiny"
description = "the embedded model, from a hub"
repository = "{REPOSITORY}"
weight_bytes = 1_210_885
step_bytes = 0
context_tokens = 16_384
kv_bytes_per_token = 1_024
snapshot_bytes = 131_072
"""
HUGE = TINY.replace('"tiny"', '"huge"').replace("1_210_885", "99_000_000_000_000")
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub({file.name: file.read_bytes() for file in paths.nano_dir().iterdir()}) as served:
        yield served


@pytest.fixture
def mac(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveMac]:
    """Fresh, but for a configuration that keeps it on loopback."""
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    (catalogue / "tiny.toml").write_text(TINY)
    (catalogue / "huge.toml").write_text(HUGE)
    live = LiveMac(tmp_path / "mac", catalogue=catalogue)
    live.layout.home.mkdir(parents=True)
    (live.layout.home / "config.toml").write_text(
        f'[server]\nport = {free_port()}\n[engine]\nmodel = "tiny"\n'
        f'[lan]\nbonjour = "none"\ninterfaces = "{LOOPBACK}"\n'
    )
    monkeypatch.setattr(paths, "catalogue_dir", lambda: catalogue)
    monkeypatch.setattr(Interpreter, "is_in_a_home", property(lambda p: "Users" in p.prefix.parts))
    monkeypatch.setattr(service_mac, "this_interpreter", lambda: live.private_python)
    monkeypatch.setattr(service_mac, "this_mac", live.mac)
    monkeypatch.setattr(setup, "ThisMachine", FakeMachine)
    monkeypatch.setattr(setup, "machine_memory", lambda: MachineMemory.of(64 << 30))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield live
    live.close()


@pytest.fixture
def wheel(tmp_path: Path) -> str:
    file = tmp_path / "verger-0.1.0-py3-none-any.whl"
    file.write_bytes(b"1")
    return str(file)


def test_a_fresh_mac_answers_and_a_second_setup_only_asks_again(
    verger: Verger, mac: LiveMac, hub: FakeHub, wheel: str
) -> None:
    first = verger("setup", "--yes", "--source", wheel)
    assert (first.status, first.err) == (0, "")
    said = f"You said: {setup_answer.QUESTION}"
    assert f"tiny answered over http://127.0.0.1:{mac.mac().config().server.port}: {said}" in (
        first.out
    )
    (secret,) = [line for line in mac.said if line.startswith("vg-")]
    assert f"shown this once: {secret}\n" in first.out
    assert "verger connect opencode --url http://127.0.0.1" in first.out
    assert hub.asked
    assert [command[:2] for command in mac.ran] == [
        ["config", "--json"],
        ["keys", "add"],
        ["pull", "tiny"],
    ]
    assert mac.verbs().count("bootstrap") == 1
    mac.ran.clear()
    hub.ranges.clear()
    mac.calls.clear()
    second = verger("setup", "--yes", "--source", wheel)
    assert (second.status, second.err) == (0, "")
    assert said in second.out
    assert secret not in second.out
    assert "is installed already" in second.out
    assert "tiny is there already" in second.out
    assert not hub.ranges
    assert not {"bootstrap", "bootout", "enable"} & set(mac.verbs())
    # The first key is its owner's: another one is made for the question, and revoked.
    assert [command[:3] for command in mac.ran] == [
        ["keys", "revoke", "setup-check"],
        ["keys", "add", "setup-check"],
        ["keys", "revoke", "setup-check"],
    ]


def test_a_fetch_that_fails_is_taken_up_by_the_same_command(
    verger: Verger, mac: LiveMac, hub: FakeHub, wheel: str
) -> None:
    hub.statuses = [404]
    failed = verger("setup", "--yes", "--source", wheel)
    assert (failed.status, failed.err.count("\n")) == (5, 1)
    assert failed.err.endswith("is kept; next: sudo verger setup\n")
    assert mac.is_loaded
    assert verger("setup", "--yes", "--source", wheel).status == 0
    assert mac.verbs().count("bootstrap") == 1


def test_an_answer_that_does_not_come_leaves_the_service_and_says_the_next_step(
    verger: Verger, mac: LiveMac, wheel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LAN's address is one where nobody listens, as behind a firewall."""
    assert verger("setup", "--yes", "--source", wheel).status == 0
    elsewhere = make_address("127.0.0.1", free_port(), is_tls=False)
    monkeypatch.setattr(setup_answer, "lan_address", lambda config: elsewhere)
    failed = verger("setup", "--yes", "--source", wheel)
    assert (failed.status, failed.err.count("\n")) == (3, 1)
    assert "the service runs, but cannot reach http://127.0.0.1" in failed.err
    assert failed.err.endswith("then: sudo verger setup\n")
    assert mac.is_loaded
    assert mac.ran[-1] == ["keys", "revoke", "setup-check"]
