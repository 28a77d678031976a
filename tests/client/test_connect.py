"""`verger connect`: what is printed, what is written, and what is left alone."""

import json
import os
from pathlib import Path

import pytest

from tests.client.conftest import Network
from tests.command_line import Verger
from tests.fake_instance import CONTEXT_TOKENS, MODEL_ID, FakeInstance
from verger import paths
from verger.cli import connect
from verger.cli.pins import load_pins
from verger.connect.entries import load_clients

KEY = "vg-abc-0123456789"
OPENCODE = Path(".config/opencode/opencode.json")
NAMES = [client.name for client in load_clients()]


@pytest.mark.slow
@pytest.mark.parametrize("client", NAMES)
def test_every_client_is_printed_with_the_real_address(
    verger: Verger, instance: FakeInstance, client: str
) -> None:
    outcome = verger("connect", client)
    assert outcome.status == 0, outcome.err
    assert f"{instance.url}/v1" in outcome.out


def test_the_context_is_what_the_server_says(
    verger: Verger, instance: FakeInstance, user_home: Path
) -> None:
    verger("connect", "opencode", "--write")
    provider = json.loads((user_home / OPENCODE).read_text())["provider"]["verger"]
    assert provider["options"]["baseURL"] == f"{instance.url}/v1"
    assert provider["models"][MODEL_ID]["limit"] == {"context": CONTEXT_TOKENS, "output": 32_768}


def test_an_unknown_client_is_answered_with_the_nearest_and_all(
    verger: Verger, instance: FakeInstance
) -> None:
    outcome = verger("connect", "openkode")
    assert outcome.status == 2
    words = outcome.err.replace("│", " ").split()
    assert "opencode." in words
    assert all(name in " ".join(words) for name in NAMES)
    assert instance.requests == []


def test_writing_keeps_what_is_there_and_a_backup(
    verger: Verger, instance: FakeInstance, user_home: Path
) -> None:
    file = user_home / OPENCODE
    file.parent.mkdir(parents=True)
    before = '{\n    "theme": "tokyonight",\n    "provider": {"other": {"npm": "x"}}\n}\n'
    file.write_text(before)
    file.chmod(0o644)
    outcome = verger("connect", "opencode", "--write")
    assert outcome.out == f"opencode --model verger/{MODEL_ID}\n"
    document = json.loads(file.read_text())
    assert document["theme"] == "tokyonight"
    assert set(document["provider"]) == {"other", "verger"}
    backup = file.with_name("opencode.json.before-verger")
    assert backup.read_text() == before
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o644
        assert backup.stat().st_mode & 0o777 == 0o600
    assert not list(file.parent.glob(".opencode*"))


def test_writing_twice_changes_nothing(
    verger: Verger, instance: FakeInstance, user_home: Path
) -> None:
    for client in ("opencode", "aider", "continue"):
        verger("connect", client, "--write")
        written = {path: path.read_bytes() for path in user_home.rglob("*") if path.is_file()}
        outcome = verger("connect", client, "--write")
        assert "holds this already" in outcome.err
        assert written == {
            path: path.read_bytes() for path in user_home.rglob("*") if path.is_file()
        }


@pytest.mark.slow
def test_a_new_file_is_private_and_no_file_holds_the_key(
    verger: Verger, instance: FakeInstance, user_home: Path, tmp_path: Path
) -> None:
    instance.key = KEY
    (tmp_path / "key").write_text(KEY)
    verger("env", "--key-file", str(tmp_path / "key"))
    for client in NAMES:
        assert verger("connect", client, "--write").status == 0
        assert KEY not in verger("connect", client).out
    written = [path for path in user_home.rglob("*") if path.is_file()]
    assert len(written) == 4
    for path in written:
        assert KEY not in path.read_text()
        assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o600


def test_json_with_comments_is_left_alone_and_what_to_paste_is_printed(
    verger: Verger, instance: FakeInstance, user_home: Path
) -> None:
    file = user_home / OPENCODE
    file.parent.mkdir(parents=True)
    file.write_text('{\n  // mine\n  "theme": "x"\n}\n')
    outcome = verger("connect", "opencode", "--write")
    assert outcome.status == 3
    assert "was left alone" in outcome.err
    assert '"baseURL"' in outcome.out
    assert file.read_text().startswith("{\n  // mine")
    assert [path.name for path in file.parent.iterdir()] == ["opencode.json"]


def test_yaml_that_is_there_is_left_alone_and_ours_stands_beside(
    verger: Verger, instance: FakeInstance, user_home: Path
) -> None:
    file = user_home / ".aider.conf.yml"
    file.write_text("# mine\ndark-mode: true\n")
    outcome = verger("connect", "aider", "--write")
    assert outcome.out == "aider --config ~/.aider.verger.yml\naider\n"
    assert file.read_text() == "# mine\ndark-mode: true\n"
    assert f"openai/{MODEL_ID}" in (user_home / ".aider.verger.yml").read_text()


def test_a_file_that_is_a_link_stays_one(
    verger: Verger, instance: FakeInstance, user_home: Path
) -> None:
    dotfiles = user_home / "dotfiles.json"
    dotfiles.write_text("{}")
    file = user_home / OPENCODE
    file.parent.mkdir(parents=True)
    file.symlink_to(dotfiles)
    assert verger("connect", "opencode", "--write").status == 0
    assert file.is_symlink()
    assert "verger" in json.loads(dotfiles.read_text())["provider"]


@pytest.mark.parametrize(("excess", "status"), [(0, 0), (1, 3)])
def test_a_file_of_absurd_length_is_left_alone(
    verger: Verger,
    instance: FakeInstance,
    user_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    excess: int,
    status: int,
) -> None:
    monkeypatch.setattr(connect, "MAX_FILE_BYTES", 100)
    file = user_home / OPENCODE
    file.parent.mkdir(parents=True)
    file.write_text("{}" + " " * (98 + excess))
    assert verger("connect", "opencode", "--write").status == status


def test_xdg_config_home_is_honoured(
    verger: Verger, instance: FakeInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    verger("connect", "opencode", "--write")
    assert (tmp_path / "xdg" / "opencode" / "opencode.json").exists()


def test_a_client_without_files_says_so(verger: Verger, instance: FakeInstance) -> None:
    outcome = verger("connect", "curl", "--write")
    assert "no file" in outcome.err
    assert outcome.out.startswith("curl ")


def test_a_server_that_asks_for_a_key_is_not_guessed_about(
    verger: Verger, instance: FakeInstance
) -> None:
    instance.key = KEY
    outcome = verger("connect", "opencode", "--write")
    assert (outcome.status, outcome.out) == (3, "")
    assert "--key-file" in outcome.err


@pytest.mark.parametrize(
    "card",
    [
        {"id": MODEL_ID},
        {"id": MODEL_ID, "context_length": 0},
        {"id": '"; touch owned; "', "context_length": 1},
        {"id": "a\nb", "context_length": 1},
    ],
)
def test_a_model_that_is_no_model_is_not_configured(
    verger: Verger, instance: FakeInstance, user_home: Path, card: dict[str, object]
) -> None:
    body = json.dumps({"data": [card]}).encode()
    instance.answers["/v1/models"] = (200, {}, body)
    outcome = verger("connect", "opencode", "--write")
    assert (outcome.status, outcome.out) == (3, "")
    assert list(user_home.iterdir()) == []


def test_connecting_pins_the_server_and_then_holds_on_to_it(
    verger: Verger, instance: FakeInstance, network: Network
) -> None:
    verger("connect", "curl", "office-mini")
    assert load_pins(paths.pins_file()).names == ["office-mini"]
    instance.id = "0c0ffee0-0000-4000-8000-000000000000"
    assert verger("connect", "curl", "office-mini").status == 3
