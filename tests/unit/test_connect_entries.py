"""The clients' entries: complete, well formed in their own formats, and without keys."""

import json
from pathlib import Path

import pytest
import yaml

from verger.connect import entries
from verger.connect.address import Address
from verger.connect.entries import Client, Facts, load_clients, nearest_name, render

FACTS = Facts(Address("office-mini.local", 8374), "gpt-oss-20b", 131_072)
CLIENTS = load_clients()
RENDERED = [render(client, FACTS) for client in CLIENTS]


def test_the_promised_clients_are_there_under_their_files_names() -> None:
    names = [client.name for client in CLIENTS]
    promised = "aider continue curl langchain open-webui openai-node openai-python opencode shell"
    assert names == promised.split()
    folder = Path(entries.__file__).parent / "clients"
    assert names == sorted(path.stem for path in folder.iterdir())


@pytest.mark.parametrize("client", RENDERED, ids=lambda client: client.name)
def test_an_entry_is_filled_in_completely(client: Client) -> None:
    text = "".join([client.use, client.note, *(file.content for file in client.files)])
    assert not entries._PLACEHOLDER.search(text)
    assert "http://office-mini.local:8374/v1" in text
    if client.name != "shell":
        assert "gpt-oss-20b" in text or client.name == "open-webui"


@pytest.mark.parametrize("client", RENDERED, ids=lambda client: client.name)
def test_files_are_well_formed_and_lie_where_the_user_may_write(client: Client) -> None:
    for file in client.files:
        assert file.path.startswith(("~/", "CONFIG/"))
        assert ".." not in file.path
        document = (json.loads if file.format == "json" else yaml.safe_load)(file.content)
        assert isinstance(document, dict)
        assert (file.format == "yaml") == bool(file.beside) == bool(file.beside_use)


def test_keys_are_references_to_the_environment() -> None:
    for client in RENDERED:
        text = "".join([client.use, *(file.content for file in client.files)])
        for line in text.splitlines():
            if "apikey" in line.lower().replace("_", ""):
                assert "OPENAI_API_KEY" in line, (client.name, line)


def test_the_programs_are_programs() -> None:
    for client in RENDERED:
        if client.name in ("openai-python", "langchain"):
            compile(client.use, client.name, "exec")


def test_an_answer_takes_a_quarter_of_the_context_at_most() -> None:
    address = FACTS.address
    assert Facts(address, "m", 4_096).answer_tokens == 1_024
    assert Facts(address, "m", 131_072).answer_tokens == 32_768
    assert Facts(address, "m", 131_076).answer_tokens == 32_768


def test_the_nearest_name() -> None:
    assert nearest_name("opencod", CLIENTS) == "opencode"
    assert nearest_name("zzz", CLIENTS) in [client.name for client in CLIENTS]
