"""`verger doctor` as a person meets it, and the machine that it asks."""

import json
import sys
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.fake_instance import ID, fake_instance
from tests.fake_machine import FakeMachine
from tests.model_folders import write_model_folder
from verger import paths
from verger.cli import doctor
from verger.cli.machine import wired_limit_bytes
from verger.config import load_config
from verger.errors import EXIT_UNWELL
from verger.macos import machine
from verger.macos.findings import Finding, Level
from verger.macos.layout import Layout
from verger.macos.machine import ThisMachine
from verger.macos.programs import Done
from verger.memory_fit import MachineMemory


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A Linux machine with 64 GB; each test says what is wrong with it."""
    fake = FakeMachine(is_mac=False)
    monkeypatch.setattr(doctor, "ThisMachine", lambda: fake)
    monkeypatch.setattr(doctor, "machine_memory", lambda: MachineMemory.of(64 << 30))
    monkeypatch.setattr(doctor, "has_engine", lambda: True)
    return fake


def findings(verger: Verger) -> dict[str, dict[str, str | None]]:
    body = json.loads(verger("doctor", "--json").out)
    assert body["schema_version"] == 1
    return {finding["check"]: finding for finding in body["findings"]}


def test_warnings_and_what_is_skipped_are_no_failure(verger: Verger) -> None:
    outcome = verger("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "0 fail, 1 warn, 12 skipped, 6 ok"


def test_one_failure_is_an_exit_code_of_its_own(verger: Verger, fake: FakeMachine) -> None:
    fake.is_writable = False
    outcome = verger("doctor")
    assert outcome.status == EXIT_UNWELL == 7
    first, second, *_ = outcome.out.splitlines()
    assert first.startswith("fail    home")
    assert second.strip().startswith("mend it: sudo chown")


def test_a_configuration_that_is_wrong_does_not_end_the_examination(
    verger: Verger, verger_home: Path
) -> None:
    verger_home.mkdir()
    (verger_home / "config.toml").write_text("[server]\nprot = 1\n")
    outcome = verger("doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(outcome.out)["findings"]}
    assert outcome.status == EXIT_UNWELL
    assert "nearest known one is server.port" in found["configuration"]["why"]
    assert found["disk"]["level"] == "ok"


def test_the_model_is_judged_as_serve_would(
    verger: Verger, verger_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(verger)["model"]["level"] == "warn"
    folder = write_model_folder(verger_home / "models" / "gpt-oss-20b")
    assert findings(verger)["model"]["why"] == (
        "gpt-oss-20b is whole and fits: the largest that is here and fits"
    )
    monkeypatch.setenv("VERGER_ENGINE_MODEL", "gpt-oss-120b")
    model = findings(verger)["model"]
    assert (model["level"], "does not fit this machine" in str(model["why"])) == ("fail", True)
    monkeypatch.setenv("VERGER_ENGINE_MODEL", "gpt-oss-20b")
    (folder / "model.safetensors").unlink()
    assert findings(verger)["model"]["level"] == "fail"


def test_without_the_engine_it_is_a_client(verger: Verger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_engine", lambda: False)
    assert findings(verger)["engine"]["level"] == "warn"


@pytest.mark.parametrize(
    ("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("192.168.1.2", "192.168.1.2")]
)
def test_what_the_checks_are_told(host: str, asked: str, verger_home: Path) -> None:
    config = load_config({"server.host": host, "server.port": 9000}, {})
    fake = FakeMachine(files={verger_home / "instance_id": b"abc\n"})
    facts = doctor.facts_of(config, fake, verger_home)
    assert (facts.home, facts.host, facts.port) == (verger_home, asked, 9000)
    assert facts.instance_id == "abc"
    assert facts.python == Path(sys.executable).resolve()


def test_on_a_mac_with_the_service_that_is_what_is_examined(
    verger: Verger, fake: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's own state folder says nothing of it, and nothing there is asked for."""
    monkeypatch.delenv("VERGER_HOME")
    fake.is_mac = True
    assert "the service's" not in str(findings(verger)["home"]["why"])

    fake.files = {Layout().record: b"{}"}
    found = findings(verger)
    assert found["home"]["level"] == found["secrets"]["level"] == "skipped"
    assert str(paths.SERVICE_HOME) in str(found["home"]["why"])
    assert str(paths.SERVICE_HOME) in str(found["disk"]["why"])
    assert "by no service" in str(found["model"]["why"])

    monkeypatch.setenv("VERGER_HOME", "/elsewhere")
    assert "/elsewhere" in str(findings(verger)["home"]["why"])


def test_of_the_service_its_own_interpreter_is_examined() -> None:
    config, python = load_config(environ={}), Layout().current / "bin" / "python"
    fake, this = FakeMachine(modes={python: 0o755}), Path(sys.executable).resolve()
    assert doctor.facts_of(config, fake, paths.SERVICE_HOME).python == python
    assert doctor.facts_of(config, fake, paths.home()).python == this
    assert doctor.facts_of(config, FakeMachine(), paths.SERVICE_HOME).python == this


def test_problems_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    levels = (Level.OK, Level.SKIPPED, Level.WARN, Level.FAIL)
    doctor.print_findings([Finding(level.value, level, "so it is") for level in levels])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["fail", "warn", "skipped", "ok"]


@pytest.mark.parametrize(
    ("fake", "limit_bytes"),
    [
        (FakeMachine(outputs={"sysctl -n iogpu.wired_limit_mb": "57344\n"}), 56 << 30),
        (FakeMachine(outputs={"sysctl -n iogpu.wired_limit_mb": "0\n"}), 0),
        (FakeMachine(outputs={"sysctl -n iogpu.wired_limit_mb": Done(1, "57344")}), 0),
        (FakeMachine(), 0),
        (FakeMachine(is_mac=False), 0),
    ],
)
def test_the_wired_limit_that_somebody_set(fake: FakeMachine, limit_bytes: int) -> None:
    assert wired_limit_bytes(fake) == limit_bytes


def test_a_command_that_is_not_there_or_does_not_end_has_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    this = ThisMachine()
    assert this.run(["no-such-tool-of-apple"]) is None
    ran = this.run(["cat", "/no/such/file"])
    assert ran is not None
    assert (ran.status, "No such file or directory" in ran.output) == (1, True)
    monkeypatch.setattr(machine, "COMMAND_LIMIT_S", 0.05)
    assert this.run(["tail", "-f", "/dev/null"]) is None


def test_what_this_machine_says_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = ThisMachine()
    file = tmp_path / "file"
    file.write_bytes(b"abcd")
    file.chmod(0o640)
    assert (this.read(file), this.mode(file)) == (b"abcd", 0o640)
    monkeypatch.setattr(machine, "MAX_FILE_BYTES", 3)
    assert this.read(file) == b"abc"
    assert this.names(tmp_path) == ["file"]
    assert this.may_write(tmp_path / "not" / "yet")
    assert not this.may_write(file)
    assert (this.free_bytes(tmp_path / "not" / "yet") or 0) > 0
    absent = tmp_path / "absent"
    assert (this.read(absent), this.mode(absent), this.names(absent)) == (None, None, None)


def test_who_answers_on_a_port() -> None:
    this = ThisMachine()
    with fake_instance() as instance:
        instance.answers["/livez"] = 200, {"x-verger-id": ID}, b"{}"
        assert this.is_listening("127.0.0.1", instance.port)
        assert this.served_id("127.0.0.1", instance.port) == ID
        instance.answers["/livez"] = 404, {}, b""
        assert this.served_id("127.0.0.1", instance.port) is None
        port = instance.port
    assert not this.is_listening("127.0.0.1", port)
    assert this.served_id("127.0.0.1", port) is None
