"""The command line as a person meets it; `serve` stops before the gateway would start."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Outcome, Verger
from tests.model_folders import write_model_folder
from verger import __version__, paths
from verger.catalogue import ModelPlaces, load_catalogue, resolve_model
from verger.cli import models, serve
from verger.cli.machine import is_trial
from verger.cli.server_settings import settings_for
from verger.config import is_loopback, load_config
from verger.memory_fit import MachineMemory
from verger.model_folder import HARMONY_TOKENS


def test_version(verger: Verger) -> None:
    assert verger("--version") == Outcome(0, f"verger {__version__}\n", "")


def test_help_names_the_commands_and_imports_no_server() -> None:
    costly = set("mlx transformers starlette httpx zeroconf ifaddr truststore tokenizers".split())
    program = (
        "import sys; sys.argv = ['verger', '--help']\n"
        "from verger.cli.main import app\n"
        "app(standalone_mode=False)\n"
        f"assert not {costly} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("serve", "models", "discover"))


def test_a_wrong_flag_is_a_usage_error(verger: Verger) -> None:
    assert verger("serve", "--prot", "1").status == 2


def test_config_prints_values_and_origins(verger: Verger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGER_SERVER_PORT", "9001")
    lines = verger("config").out.splitlines()
    assert ["server.port", "9001", "VERGER_SERVER_PORT"] in [line.split() for line in lines]
    assert ["server.host", '"127.0.0.1"', "default"] in [line.split() for line in lines]


def test_config_as_json_carries_its_schema_version(verger: Verger) -> None:
    body = json.loads(verger("config", "--json").out)
    assert body["schema_version"] == 1
    assert body["settings"]["engine.model"] == {"value": "auto", "origin": "default"}


def test_models_says_what_is_present_and_what_to_do(
    verger: Verger, verger_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "machine_memory", lambda: MachineMemory.of(64 << 30))
    write_model_folder(verger_home / "models" / "gpt-oss-20b")
    body = json.loads(verger("models", "--json").out)
    rows = {row["id"]: row for row in body["models"]}
    assert (body["schema_version"], body["usable_bytes"]) == (2, 48 << 30)
    assert (rows["gpt-oss-20b"]["state"], rows["gpt-oss-20b"]["is_fitting"]) == ("present", True)
    assert (rows["gpt-oss-120b"]["state"], rows["gpt-oss-120b"]["is_fitting"]) == ("absent", False)
    text = verger("models").out
    assert all(row["next_step"] in text for row in rows.values())
    assert "may take 48.0 GiB of the 64.0 GiB that there are: it takes a Mac with 96 GB" in text


@pytest.mark.parametrize("folder", ["gpt-oss-20b", "gpt-oss-20b.partial"])
def test_models_tells_half_a_model_from_none(
    folder: str, verger: Verger, verger_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "machine_memory", lambda: MachineMemory.of(64 << 30))
    half = verger_home / "models" / folder / "sub" / "model.safetensors.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(bytes(1000))
    rows = {row["id"]: row for row in json.loads(verger("models", "--json").out)["models"]}
    row = rows["gpt-oss-20b"]
    assert (row["state"], row["held_bytes"]) == ("partial", 1000)
    assert row["next_step"] == "get the rest: verger pull gpt-oss-20b"
    assert "partial, 1e-06 of 12.1 GB" in verger("models").out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "cannot read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "x"}'), "not a gpt"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"added_tokens": []}'), "Harmony"),
        (lambda folder: (folder / "model.safetensors").write_bytes(bytes(7)), "truncated"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing"),
    ],
)
def test_serve_refuses_a_bad_folder_in_one_line(
    damage: Callable[[Path], object], message: str, tmp_path: Path, verger: Verger
) -> None:
    folder = write_model_folder(tmp_path / "model", tokens=HARMONY_TOKENS)
    damage(folder)
    outcome = verger("serve", "--fake", "any", "--model", str(folder))
    assert (outcome.status, outcome.out) == (3, "")
    assert outcome.err.startswith("verger: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def test_serve_refuses_an_unknown_setting_in_one_line(verger: Verger, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[server]\nprot = 1\n")
    outcome = verger("serve", "--config", str(file))
    assert outcome.status == 3
    assert outcome.err == (
        f"verger: {file}: unknown setting server.prot; the nearest known one is server.port\n"
    )


def test_serve_without_the_engine_says_how_to_install_it(
    verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "has_engine", lambda: False)
    outcome = verger("serve")
    assert outcome.status == 3
    assert outcome.err.count("\n") == 1
    assert "verger[engine]" in outcome.err


def test_nothing_is_served_of_a_state_that_is_half_restored(
    verger: Verger, verger_home: Path
) -> None:
    journal = verger_home / ".restore-x" / "journal"
    journal.parent.mkdir(parents=True)
    journal.write_text("{}")
    outcome = verger("serve")
    assert outcome.status == 3
    assert "was cut off: run it again" in outcome.err


def test_what_the_gateway_is_told(tmp_path: Path, verger_home: Path) -> None:
    """An alias for the served model gets its id; one for another model is kept as it is."""
    nano = write_model_folder(tmp_path / "nano")
    choice = resolve_model(
        "auto",
        load_catalogue(paths.catalogue_dir()),
        ModelPlaces(models_dir=tmp_path, nano_dir=nano),
        memory=MachineMemory.of(64 << 30),
        is_trial=True,
    )
    environ = {"VERGER_LAN_INTERFACES": " en0, 192.168.1.20,", "VERGER_LAN_BONJOUR": "dnssd"}
    config = load_config({"server.port": 0, "engine.max_rows": 3}, environ)
    settings = settings_for(config, choice, fake=None)
    assert (settings.model_id, settings.model_folder) == ("nano", nano)
    assert (settings.port, settings.max_rows, settings.context_tokens) == (0, 3, 4096)
    assert settings.sampling.temperature == 0.0
    assert settings.aliases["gpt-4o"] == "nano"
    assert settings.aliases["openai/gpt-oss-20b"] == "gpt-oss-20b"
    assert (settings.bonjour, settings.lan_interfaces) == ("dnssd", ("en0", "192.168.1.20"))
    assert settings.instance_id == (verger_home / "instance_id").read_text().strip()
    assert settings.database_file == verger_home / "verger.db"
    assert settings.gives_up
    public = load_config({"server.host": "0.0.0.0"}, environ={})
    assert not settings_for(public, choice, fake=None).gives_up
    assert settings.prices.price("openai", "gpt-5-mini") is not None
    assert settings.machine is None, "nobody assumes a Mac for the embedded model"


def test_the_gateway_is_told_what_this_mac_is_taken_to_be(tmp_path: Path) -> None:
    write_model_folder(tmp_path / "gpt-oss-20b")
    choice = resolve_model(
        "gpt-oss-20b",
        load_catalogue(paths.catalogue_dir()),
        ModelPlaces(models_dir=tmp_path, nano_dir=tmp_path),
        memory=MachineMemory.of(64 << 30),
        is_trial=True,
    )
    config = load_config(environ={"VERGER_COSTS_DECODE_TOK_S": "99"})
    machine = settings_for(config, choice, fake=None).machine
    assert machine is not None
    assert (machine.decode_tok_s, machine.prefill_tok_s) == (99, 1200)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("office-mini.local", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "is_service", "expected"),
    [("127.0.0.1", False, True), ("0.0.0.0", False, False), ("127.0.0.1", True, False)],
)
def test_the_embedded_model_stands_in_for_nobody_but_this_user(
    tmp_path: Path, host: str, is_service: bool, expected: bool
) -> None:
    """A service on loopback may be behind a proxy that the whole office uses."""
    config = load_config({"server.host": host}, environ={})
    assert is_trial(config, paths.SERVICE_HOME if is_service else tmp_path) is expected
