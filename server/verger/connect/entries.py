"""The clients that Verger can configure: one TOML file each in `clients/`, read as typed entries.

Used by `verger connect` and by the gateway's page /connect. An entry is text with placeholders
(`@base_url@`), which `render` fills in; its API key is always a reference to the environment.
Must not know where files are written.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from verger.connect.address import Address

MAX_ANSWER_TOKENS = 32_768
_FOLDER = Path(__file__).parent / "clients"
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")


class ClientFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A configuration file of the client. `path` begins with ~/ or CONFIG/ (the user's own)."""

    path: str
    format: Literal["json", "yaml"]
    content: str
    beside: str = ""
    """YAML is not merged: where there is such a file already, ours is written here."""
    beside_use: str = ""
    """The command that then reads it."""


class Client(Struct, frozen=True, forbid_unknown_fields=True):
    """One client, before its placeholders are filled in."""

    name: str
    title: str
    use: str
    """What to run or paste."""
    files: tuple[ClientFile, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the server."""

    address: Address
    model: str
    context_tokens: int

    @property
    def answer_tokens(self) -> int:
        """How much of the context a client may reserve for one answer."""
        return min(MAX_ANSWER_TOKENS, self.context_tokens // 4)


def load_clients() -> list[Client]:
    """All entries, sorted by name."""
    files = sorted(_FOLDER.glob("*.toml"))
    return [msgspec.convert(tomllib.loads(file.read_text("utf-8")), Client) for file in files]


def nearest_name(name: str, clients: list[Client]) -> str:
    """What somebody who wrote `name` may have meant."""
    return difflib.get_close_matches(name, [one.name for one in clients], n=1, cutoff=0.0)[0]


def render(client: Client, facts: Facts) -> Client:
    """The entry with its placeholders filled in. The values need no escaping: see `address`."""
    values = {
        "base_url": facts.address.base_url,
        "root_url": facts.address.root_url,
        "model": facts.model,
        "context_tokens": str(facts.context_tokens),
        "answer_tokens": str(facts.answer_tokens),
    }

    def fill(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)

    files = tuple(
        msgspec.structs.replace(file, content=fill(file.content), beside_use=fill(file.beside_use))
        for file in client.files
    )
    return msgspec.structs.replace(
        client, use=fill(client.use), note=fill(client.note), files=files
    )
