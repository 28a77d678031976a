"""`verger setup`: what it plans anywhere, and what it refuses before anything is done."""

import sys
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.fake_mac import FakeMac
from tests.fake_machine import FakeMachine
from tests.model_folders import write_model_folder
from verger import paths
from verger.catalogue import ModelPlaces, load_catalogue
from verger.cli import service_mac, setup, setup_answer
from verger.cli.pull import SPARE_BYTES
from verger.config import load_config
from verger.errors import InstallError
from verger.macos.layout import LABEL
from verger.macos.plist_rules import problems
from verger.macos.source import Interpreter
from verger.memory_fit import GIB, MachineMemory


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    """A fresh one with 64 GB and room on its disk."""
    fake = FakeMac(tmp_path / "mac")
    monkeypatch.setattr(Interpreter, "is_in_a_home", property(lambda p: "Users" in p.prefix.parts))
    monkeypatch.setattr(service_mac, "this_interpreter", lambda: fake.private_python)
    monkeypatch.setattr(service_mac, "this_mac", fake.mac)
    monkeypatch.setattr(setup, "ThisMachine", FakeMachine)
    monkeypatch.setattr(setup, "machine_memory", lambda: MachineMemory.of(64 * GIB))
    monkeypatch.setattr(service_mac, "machine_memory", lambda: MachineMemory.of(64 * GIB))
    monkeypatch.setattr(setup, "free_bytes", lambda folder: 10**12)
    return fake


def models(mac: FakeMac, name: str) -> None:
    write_model_folder(mac.layout.home / "models" / name)


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_a_dry_run_elsewhere_prints_the_whole_plan_and_a_plist_that_keeps_the_rules(
    verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine that no model fits: as for the smallest Mac that one does."""
    monkeypatch.setattr(setup, "machine_memory", lambda: MachineMemory.of(1 * GIB))
    printed = verger("setup", "--dry-run")
    assert (printed.status, printed.err) == (0, "")
    lines = printed.out.splitlines()
    first = lines.index('    <?xml version="1.0" encoding="UTF-8"?>')
    last = lines.index("    </plist>")
    plist = "\n".join(line.removeprefix("    ") for line in lines[first : last + 1]).encode()
    assert problems(plist, f"{LABEL}.plist") == []
    order = ["enable", "bootstrap", "kickstart", "/livez", "pull gpt-oss-20b", "/readyz", "POST"]
    commands = [line for line in lines if not line.startswith("    ")]
    positions = [max(n for n, line in enumerate(commands) if part in line) for part in order]
    assert positions == sorted(positions)
    assert verger("setup").status == 4


def test_the_largest_model_that_fits_is_taken_or_one_that_is_there(
    verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "pull gpt-oss-20b" in verger("setup", "--dry-run").out
    monkeypatch.setattr(setup, "machine_memory", lambda: MachineMemory.of(128 * GIB))
    assert "pull gpt-oss-120b" in verger("setup", "--dry-run").out
    assert "bootout" not in verger("setup", "--dry-run").out
    models(mac, "gpt-oss-20b")
    assert "pull" not in verger("setup", "--dry-run").out
    # What is served meanwhile does not make way by itself.
    larger = verger("setup", "--dry-run", "--model", "gpt-oss-120b").out
    assert larger.index("pull gpt-oss-120b --no-load") < larger.index("bootout")


@pytest.mark.parametrize(
    ("name", "why"),
    [("gpt-oss-120b", "does not fit this machine"), ("nano", "no model 'nano' to set up")],
)
def test_a_model_that_cannot_be_the_offices_is_refused(
    verger: Verger, mac: FakeMac, name: str, why: str
) -> None:
    before = mac.snapshot()
    refused = verger("setup", "--model", name, "--yes")
    assert (refused.status, refused.err.count("\n"), why in refused.err) == (3, 1, True)
    assert mac.snapshot() == before


def test_a_model_that_the_service_would_not_serve_is_refused(
    verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "machine_memory", lambda: MachineMemory.of(128 * GIB))
    models(mac, "gpt-oss-120b")
    refused = verger("setup", "--model", "gpt-oss-20b")
    assert (refused.status, "would serve gpt-oss-120b" in refused.err) == (3, True)
    (mac.layout.home / "config.toml").write_text('[engine]\nmodel = "gpt-oss-120b"\n')
    refused = verger("setup", "--model", "gpt-oss-20b")
    assert (refused.status, "the service serves gpt-oss-120b" in refused.err) == (3, True)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_full_disk_is_told_before_anything_is_installed(
    verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    model = load_catalogue(paths.catalogue_dir())["gpt-oss-20b"]
    free = model.weight_bytes + SPARE_BYTES - missing
    monkeypatch.setattr(setup, "free_bytes", lambda folder: free)
    monkeypatch.setattr(setup, "_judge", judged)
    stopped = verger("setup")
    assert ("are still to come" in stopped.err) is bool(missing)
    assert mac.records == {}


def judged(mac: object, *, is_yes: bool) -> None:
    raise InstallError("judged")


def test_a_machine_that_fails_a_check_is_its_owners_decision(
    verger: Verger, mac: FakeMac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepy = {"pmset -g": " sleep 10\n autorestart 1\n lowpowermode 0\n"}
    monkeypatch.setattr(setup, "ThisMachine", lambda: FakeMachine(outputs=sleepy))
    before = mac.snapshot()
    refused = verger("setup")
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    assert "this machine fails sleep (above)" in refused.err
    assert "mend it: sudo pmset" in refused.out
    assert mac.snapshot() == before
    monkeypatch.setattr(setup, "_install", installed)
    assert "it went on" in verger("setup", "--yes").err


def installed(mac: object, source: object) -> None:
    raise InstallError("it went on")


def test_an_install_that_fails_leaves_nothing(verger: Verger, mac: FakeMac, tmp_path: Path) -> None:
    file = tmp_path / "verger-0.1.0-py3-none-any.whl"
    file.write_bytes(b"1")
    before = mac.snapshot()
    assert verger("setup", "--dry-run", "--source", str(file)).status == 0
    mac.fail_at = len(mac.calls) * 2 + 40
    mac.records.clear()
    failed = verger("setup", "--source", str(file))
    assert (failed.status, failed.err.count("\n")) == (5, 1)
    assert failed.err.endswith("; everything is as it was before\n")
    mac.fail_at = None
    assert mac.snapshot() == before


def test_only_root_may(verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch) -> None:
    person = service_mac.Mac(mac.layout, mac, mac.executor, is_root=lambda: False)
    monkeypatch.setattr(service_mac, "this_mac", lambda: person)
    refused = verger("setup")
    assert (refused.status, "sudo" in refused.err) == (3, True)


@pytest.mark.parametrize(
    ("host", "interfaces", "why"),
    [
        ("127.0.0.1", "no-such0", "there is no interface"),
        ("192.0.2.1", "127.0.0.1", "where no other machine gets"),
        ("somewhere", "127.0.0.1", "somewhere"),
    ],
)
def test_a_service_that_no_other_machine_reaches_has_no_address(
    host: str, interfaces: str, why: str
) -> None:
    config = load_config({"server.host": host, "lan.interfaces": interfaces}, environ={})
    with pytest.raises(InstallError, match=rf"{why}.*then: sudo verger setup"):
        setup_answer.lan_address(config)


def test_the_services_models_are_looked_for_in_its_home(mac: FakeMac) -> None:
    assert isinstance(mac.mac().places(), ModelPlaces)
    assert mac.mac().places().models_dir == mac.layout.home / "models"
