"""`verger service` as a person meets it: elsewhere than on a Mac, and on one of stand-ins."""

import json
import plistlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import Outcome, Verger
from tests.fake_mac import FakeMac
from tests.model_folders import write_model_folder
from verger import paths
from verger.cli import service_mac
from verger.config import load_config
from verger.errors import NotAMac
from verger.macos.layout import LABEL, Layout
from verger.macos.plist_rules import problems
from verger.macos.source import Interpreter, source_of
from verger.memory_fit import GIB, MachineMemory
from verger.model_folder import HARMONY_TOKENS


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    """With a model, as long as the test does not take it away."""
    fake = FakeMac(tmp_path / "mac")
    monkeypatch.setattr(Interpreter, "is_in_a_home", property(lambda p: "Users" in p.prefix.parts))
    monkeypatch.setattr(service_mac, "this_interpreter", lambda: fake.private_python)
    monkeypatch.setattr(service_mac, "this_mac", fake.mac)
    monkeypatch.setattr(service_mac, "_has_model", lambda config, folder: True)
    monkeypatch.setattr(service_mac, "_has_keys", lambda file: fake.layout.record.exists())
    return fake


def wheel(folder: Path, content: bytes = b"1") -> str:
    file = folder / "verger-0.1.0-py3-none-any.whl"
    file.write_bytes(content)
    return str(file)


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
@pytest.mark.parametrize(
    "command",
    ["install", "uninstall", "start", "stop", "restart", "status", "logs"],
)
def test_elsewhere_than_on_a_mac_each_says_so_in_one_line(verger: Verger, command: str) -> None:
    refused = verger("service", command)
    assert (refused.status, refused.out, refused.err.count("\n")) == (4, "", 1)
    assert "--dry-run" in refused.err
    assert verger("upgrade").status == 4


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_a_dry_run_elsewhere_prints_every_file_and_a_plist_that_keeps_the_rules(
    verger: Verger,
) -> None:
    printed = verger("service", "install", "--dry-run")
    assert (printed.status, printed.err) == (0, "")
    lines = printed.out.splitlines()
    first, last = (
        lines.index('    <?xml version="1.0" encoding="UTF-8"?>'),
        lines.index("    </plist>"),
    )
    plist = "\n".join(line.removeprefix("    ") for line in lines[first : last + 1]).encode()
    assert problems(plist, f"{LABEL}.plist") == []
    assert plistlib.loads(plist)["ProcessType"] == "Interactive"
    verbs = [line.split()[1] for line in lines if line.startswith("/bin/launchctl")]
    assert verbs == ["enable", "bootstrap", "kickstart"]
    assert any(line.startswith("# file /Library/LaunchDaemons/com.verger") for line in lines)


def test_without_launchctl_a_mac_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(service_mac, "LAUNCHCTL", "/nowhere/launchctl")
    with pytest.raises(NotAMac, match="there is no /nowhere/launchctl"):
        service_mac.this_mac()


def test_a_life_of_the_service(verger: Verger, mac: FakeMac, tmp_path: Path) -> None:
    flags = ["--source", wheel(tmp_path)]
    assert "not installed" in verger("service", "status").out
    made = verger("service", "install", *flags)
    assert (made.status, made.err) == (0, "")
    assert "The service runs.\nThe key admin is printed above, this once." in made.out
    again = verger("service", "install", *flags)
    assert again == Outcome(
        0, "Nothing to do: it is installed and loaded.\nThe service runs.\n", ""
    )
    assert verger("service", "status").status == 0
    assert verger("service", "stop").status == 0
    assert not mac.is_loaded
    stopped = verger("service", "status")
    assert (stopped.status, "stopped" in stopped.out) == (3, True)
    assert verger("service", "stop").out == "Nothing to do. The service is stopped.\n"
    assert verger("service", "start").status == 0
    assert verger("service", "restart").status == 0
    assert mac.is_loaded
    gone = verger("service", "uninstall")
    assert gone.status == 0
    assert str(mac.layout.home / "config.toml") in gone.out
    assert verger("service", "uninstall", "--purge").out.endswith("nothing is left of it.\n")


def test_what_is_loaded_and_does_not_answer_is_not_said_to_run(
    verger: Verger, mac: FakeMac, tmp_path: Path
) -> None:
    flags = ["--source", wheel(tmp_path)]
    verger("service", "install", *flags)
    mac.dead = {mac.layout.current.readlink().name}
    mac.layout.crash_log.write_text("verger: it broke\n")
    for command in (["start"], ["install", *flags]):
        told = verger("service", *command)
        assert (told.status, "The service runs" in told.out) == (5, False)
        assert "not within 300 s (verger: it broke)" in told.err
    assert mac.is_loaded


def test_another_server_on_its_port_is_not_taken_for_the_service(
    verger: Verger, mac: FakeMac, tmp_path: Path
) -> None:
    """As `scripts/serve` in another window would be."""
    mac.is_port_taken = True
    before = mac.snapshot()
    told = verger("service", "install", "--source", wheel(tmp_path))
    assert (told.status, told.err.count("\n")) == (5, 1)
    assert "one does, and would be taken for the service: end it" in told.err
    assert mac.snapshot() == before


def test_a_restart_stops_before_it_starts(verger: Verger, mac: FakeMac, tmp_path: Path) -> None:
    verger("service", "install", "--source", wheel(tmp_path))
    mac.calls.clear()
    verger("service", "restart")
    # What is there is looked at first.
    assert mac.verbs()[:2] == ["version", "print"]
    assert mac.verbs()[2:] == ["bootout", "print", "enable", "bootstrap", "kickstart", "print"]


def test_an_upgrade_needs_a_service_and_moves_to_the_new_version(
    verger: Verger, mac: FakeMac, tmp_path: Path
) -> None:
    refused = verger("upgrade", "--source", wheel(tmp_path))
    assert (refused.status, "no service to upgrade" in refused.err) == (3, True)
    verger("service", "install", "--source", wheel(tmp_path))
    first = mac.layout.current.readlink()
    assert verger("upgrade", "--source", wheel(tmp_path, b"2")).status == 0
    assert mac.layout.current.readlink() != first
    mac.dead = {source_of(Path(wheel(tmp_path, b"3"))).environment}
    second = mac.layout.current.readlink()
    failed = verger("upgrade", "--source", wheel(tmp_path, b"3"))
    assert (failed.status, failed.err.count("\n")) == (5, 1)
    assert failed.err.endswith("everything is as it was before\n")
    assert mac.layout.current.readlink() == second


def test_an_edited_plist_is_told_and_replaced_only_if_asked(
    verger: Verger, mac: FakeMac, tmp_path: Path
) -> None:
    flags = ["--source", wheel(tmp_path)]
    verger("service", "install", *flags)
    edited = mac.layout.plist.read_bytes().replace(b"Interactive", b"Background")
    mac.layout.plist.write_bytes(edited)
    told = json.loads(verger("service", "status", "--json").out)
    assert told["schema_version"] == 1
    assert any("ProcessType is Background" in problem for problem in told["problems"])
    assert any("was edited by hand" in problem for problem in told["problems"])
    refused = verger("service", "install", *flags)
    assert (refused.status, refused.out, refused.err.count("\n")) == (6, "", 1)
    assert mac.layout.plist.read_bytes() == edited
    assert verger("service", "install", "--replace-plist", *flags).status == 0
    assert verger("service", "status").status == 0


def test_half_a_service_is_not_started(verger: Verger, mac: FakeMac, tmp_path: Path) -> None:
    flags = ["--source", wheel(tmp_path)]
    verger("service", "install", *flags)
    mac.layout.current.unlink()
    mac.is_loaded = False
    for command in ("start", "restart", "stop"):
        refused = verger("service", command)
        assert (refused.status, refused.err.count("\n")) == (6, 1)
        assert "half installed, without the link current" in refused.err
    assert verger("service", "status").status == 6
    assert verger("service", "install", *flags).status == 0
    assert verger("service", "status").status == 0


def test_only_root_changes_anything(
    verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verger("service", "install", "--source", wheel(tmp_path))
    monkeypatch.setattr(service_mac, "this_mac", lambda: replace(mac.mac(), is_root=lambda: False))
    before = mac.snapshot()
    commands = (
        ["stop"],
        ["restart"],
        ["uninstall"],
        ["install", "--source", wheel(tmp_path, b"2")],
    )
    for command in commands:
        refused = verger("service", *command)
        assert (refused.status, refused.err.count("\n")) == (3, 1)
        assert "sudo" in refused.err
        assert verger("service", *command, "--dry-run").status == 0
    assert mac.snapshot() == before


def test_without_a_model_it_runs_and_the_next_step_is_told(
    verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service_mac, "_has_model", lambda config, folder: False)
    mac.has_model = False
    flags = ["--source", wheel(tmp_path)]
    for command in (["install", *flags], ["install", *flags], ["restart"], ["stop"], ["start"]):
        done = verger("service", *command)
        assert (done.status, done.err) == (0, "")
        told = "The service runs, but is not ready: there is no model in" in done.out
        assert told is (command != ["stop"])
        assert mac.is_loaded is (command != ["stop"])
    status = verger("service", "status")
    assert status.status == 3
    assert "service      running, without a model yet" in status.out
    assert f"sudo -u _verger env VERGER_HOME='{mac.layout.home}'" in status.out
    told = json.loads(verger("service", "status", "--json").out)
    assert (told["is_alive"], told["is_ready"], told["has_model"]) == (True, False, False)


def test_logs_are_the_last_lines(verger: Verger, mac: FakeMac, tmp_path: Path) -> None:
    assert verger("service", "logs").status == 3
    verger("service", "install", "--source", wheel(tmp_path))
    mac.layout.crash_log.write_text("".join(f"line {n}\n" for n in range(100)))
    assert verger("service", "logs", "-n", "2").out == "line 98\nline 99\n"
    assert len(verger("service", "logs").out.splitlines()) == 50
    assert verger("service", "logs", "-n", "10001").status == 2
    mac.layout.server_log.write_text("event=ready\n")
    assert verger("service", "logs").out == "event=ready\n"


def test_where_the_service_answers_is_read_from_its_configuration(mac: FakeMac) -> None:
    home = mac.layout.home
    home.mkdir(parents=True)
    urls = {
        'host = "0.0.0.0"': "http://127.0.0.1:8374",
        'host = "::"\nport = 9': "http://[::1]:9",
        'host = "10.0.0.2"\ntls_cert = "c"\ntls_key = "k"': "https://10.0.0.2:8374",
    }
    for text, url in urls.items():
        (home / "config.toml").write_text(f"[server]\n{text}\n")
        assert mac.mac().url() == url


def test_a_configuration_that_is_wrong_stops_an_install(
    verger: Verger, mac: FakeMac, tmp_path: Path
) -> None:
    mac.layout.home.mkdir(parents=True)
    (mac.layout.home / "config.toml").write_text("[server]\nprot = 1\n")
    refused = verger("service", "install", "--source", wheel(tmp_path))
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    assert "server.port" in refused.err
    assert mac.changes() == []


def test_with_a_configuration_that_is_wrong_it_can_be_seen_stopped_and_removed(
    verger: Verger, mac: FakeMac, tmp_path: Path
) -> None:
    verger("service", "install", "--source", wheel(tmp_path))
    (mac.layout.home / "config.toml").write_text("[server]\nprot = 1\n")
    status = verger("service", "status")
    assert (status.status, "problem: " in status.out) == (6, True)
    assert "server.port" in status.out
    mac.calls.clear()
    restarted = verger("service", "restart")
    assert (restarted.status, "server.port" in restarted.err) == (3, True)
    assert (mac.is_loaded, "bootout" in mac.verbs()) == (True, False)
    assert verger("service", "stop").status == 0
    assert not mac.is_loaded
    assert verger("service", "uninstall").status == 0


def test_a_log_that_may_not_be_read_is_told_in_one_line(
    verger: Verger, mac: FakeMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    told = verger("service", "logs")
    assert (told.status, told.err.count("\n")) == (3, 1)
    assert told.err.endswith("verger.log: Permission denied; use sudo\n")


@pytest.mark.parametrize("name", ["nowhere", "other-1.0-py3-none-any.whl", "."])
def test_a_source_that_is_none_is_refused(
    verger: Verger, mac: FakeMac, tmp_path: Path, name: str
) -> None:
    refused = verger("service", "install", "--source", str(tmp_path / name))
    assert (refused.status, refused.err.count("\n")) == (3, 1)


def test_a_checkout_is_another_source_once_anything_of_it_changes(tmp_path: Path) -> None:
    package = tmp_path / "server" / "verger"
    package.mkdir(parents=True)
    for file in (tmp_path / "requirements.lock", tmp_path / "pyproject.toml"):
        file.touch()
    (package / "__init__.py").write_text('__version__ = "3.1"\n')
    first = source_of(tmp_path)
    assert (first.version, source_of(tmp_path)) == ("3.1", first)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").touch()
    assert source_of(tmp_path) == first
    (package / "new.py").touch()
    assert source_of(tmp_path).environment != first.environment


def test_a_model_is_one_that_the_service_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MachineMemory.of(128 * GIB)
    monkeypatch.setattr(service_mac, "machine_memory", lambda: memory)

    def has_model(**flags: str) -> bool:
        config = load_config({f"engine.{name}": text for name, text in flags.items()}, environ={})
        return service_mac._has_model(config, tmp_path)

    assert not has_model()
    assert not has_model(model="/nowhere")
    write_model_folder(tmp_path / "gpt-oss-20b", tokens=HARMONY_TOKENS)
    assert has_model()
    assert has_model(model="gpt-oss-20b")
    assert not has_model(model="gpt-oss-120b")
    assert has_model(model=str(tmp_path / "gpt-oss-20b"))
    assert not has_model(model=str(tmp_path))
    memory = MachineMemory.of(16 * GIB)
    assert not has_model()


def test_on_a_mac_the_services_socket_is_asked_too_unless_another_home_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Layout().home == paths.SERVICE_HOME
    monkeypatch.setattr(sys, "platform", "darwin")
    assert paths.admin_sockets() == (paths.home() / "admin.sock",)
    monkeypatch.delenv("VERGER_HOME")
    own, service = paths.admin_sockets()
    assert own == paths.home() / "admin.sock"
    assert service == Layout().home / "admin.sock"
