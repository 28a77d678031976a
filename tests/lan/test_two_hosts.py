"""From nothing to an answer: a server on one machine, a colleague's laptop on another.

Found without being told an address, pinned, asked by the official client with a key; and what
happens without one, with one that was revoked, under another name, and for another tenant.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keys import make_key, revoke
from tests.lan.networks import Office
from tests.lan.serving import serving

pytestmark = pytest.mark.process

SCRIPT = r"""
[[reply]]
text = "<|channel|>final<|message|>The orchard is open."
"""
VERGER = (sys.executable, "-P", "-m", "verger.cli.main")
ASK = """
import os, sys
from openai import OpenAI
answer = OpenAI().chat.completions.create(
    model="gpt-4o", messages=[{"role": "user", "content": "The orchard is open. " * 40}]
)
print(answer.choices[0].message.content)
print(answer.usage.prompt_tokens_details.cached_tokens)
"""
STATUS = """
import sys, httpx
url, key, host = sys.argv[1:]
headers = {"authorization": f"Bearer {key}"} if key else {}
headers |= {"host": host} if host else {}
print(httpx.get(f"{url}/models", headers=headers, timeout=10).status_code)
"""


class Laptop:
    """The other machine, with a state folder of its own."""

    def __init__(self, office: Office, home: Path) -> None:
        self._office = office
        self._home = home

    def run(self, *command: str, **variables: str) -> str:
        values = [f"{name}={value}" for name, value in variables.items()]
        home = f"VERGER_HOME={self._home}"
        return self._office.client.run("env", home, *values, *command)

    def verger(self, *arguments: str) -> str:
        return self.run(*VERGER, *arguments, "--interfaces", "lan0")

    def ask(self, url: str, key: str) -> list[str]:
        """The answer, and how much of the prompt was cached."""
        return self.run(
            sys.executable, "-c", ASK, OPENAI_BASE_URL=url, OPENAI_API_KEY=key
        ).splitlines()

    def status(self, url: str, key: str = "", host: str = "") -> int:
        return int(self.run(sys.executable, "-c", STATUS, url, key, host))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "home" / "verger.db"


@pytest.fixture
def ada(database: Path) -> str:
    database.parent.mkdir()
    return make_key(database, "ada")


@pytest.fixture
def laptop(two_hosts: Office, tmp_path: Path, real_model: str, ada: str) -> Iterator[Laptop]:
    """Beside a ready server that asks for keys."""
    flags = ("--host", "0.0.0.0")
    home = tmp_path / "home"
    with serving(
        two_hosts.server, home, real_model, *flags, script=SCRIPT, VERGER_LAN_INTERFACES="lan0"
    ):
        yield Laptop(two_hosts, tmp_path / "laptop")


def exported(shell: str) -> dict[str, str]:
    """What `verger env` would set."""
    return dict(re.findall(r"^export (\w+)='?(.*?)'?$", shell, re.M))


def test_a_colleague_finds_it_asks_and_is_answered(
    laptop: Laptop, tmp_path: Path, ada: str, two_hosts: Office
) -> None:
    (found,) = json.loads(laptop.verger("discover", "--json"))["instances"]
    assert (found["name"], found["needs_key"]) == ("office-mini", True)
    key_file = tmp_path / "key"
    key_file.write_text(ada)
    variables = exported(laptop.verger("env", "office-mini", "--key-file", str(key_file)))
    assert variables["OPENAI_API_KEY"] == ada
    answer, _ = laptop.ask(variables["OPENAI_BASE_URL"], variables["OPENAI_API_KEY"])
    assert answer == "The orchard is open."
    assert two_hosts.server.sent_packets("other0") == 0


def test_who_does_not_belong_is_turned_away(
    laptop: Laptop, database: Path, ada: str, two_hosts: Office
) -> None:
    url = f"http://{two_hosts.server_address}:8374/v1"
    assert laptop.status(url, ada) == 200
    assert laptop.status(url) == 401
    assert laptop.status(url, "vg-" + "x" * 50) == 401
    assert laptop.status(url, ada, host="evil.example") == 403
    revoke(database, "ada")
    assert laptop.status(url, ada) == 401


def test_another_tenants_prefix_is_not_found(
    laptop: Laptop, database: Path, ada: str, two_hosts: Office
) -> None:
    bob, eve = make_key(database, "bob"), make_key(database, "eve", tenant="lab")
    url = f"http://{two_hosts.server_address}:8374/v1"
    cached = {
        name: int(laptop.ask(url, key)[1])
        for name, key in (("ada", ada), ("bob", bob), ("eve", eve))
    }
    assert cached["ada"] == cached["eve"] == 0
    assert cached["bob"] > 0
