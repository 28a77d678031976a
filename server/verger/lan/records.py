"""What a server says of itself on the network: names and TXT records, to bytes and back. Pure.

Used by the advertising backends, by `browse` and by whoever lists servers. Must not know sockets.
What is decoded here comes from anybody on the network: it is checked, bounded, and trusted in
nothing; it may name a server that is not one.

RFC 6763: 4.1 (instance names), 6 (TXT records).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

SERVICE_TYPE = "_verger._tcp.local."
SATURN_TYPE = "_saturn._tcp.local."
"""A convention that clients of several makers know; its record has fields of its own."""

TXT_VERSION = "1"
MAX_TXT_BYTES = 400
"""Of what we publish. Every change is sent to everybody, so it is kept small."""
MAX_FOREIGN_TXT_BYTES = 1_300
"""Of what is looked at."""
MAX_STRING_BYTES = 255
MAX_LISTED_MODELS = 6
MAX_NAME_BYTES = 63
MAX_SUFFIX_BYTES = 4
"""Room for the `-2` that tells servers of one name apart."""
SATURN_PRIORITY = 50
"""The convention's own default; lower is preferred."""

_FALLBACK_NAME = "verger"


@dataclass(frozen=True, slots=True)
class Advert:
    """One server, as it is advertised."""

    name: str
    port: int
    id: str
    """A UUID that stays the server's own when its name or address changes."""
    model_ids: tuple[str, ...]
    """Empty where there are too many to be listed."""
    needs_key: bool
    has_tls: bool
    version: str
    path: str = "/v1"


def instance_name(name: str) -> str:
    """A name as it may be advertised: one label, in which a dot would end it, cut to fit."""
    text = "".join(character if character.isprintable() else " " for character in name)
    label = _cut(text.replace(".", "-").strip(), MAX_NAME_BYTES - MAX_SUFFIX_BYTES).strip()
    return label or _FALLBACK_NAME


def host_label(name: str) -> str:
    """The host name, without `.local`, that belongs to an instance name: `Office Mini` is at
    `office-mini`."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return label[:MAX_NAME_BYTES].strip("-") or _FALLBACK_NAME


def encode_txt(advert: Advert) -> dict[str, str]:
    """The fields of the `_verger._tcp` record; models that do not fit are only counted."""
    fields = {
        "txtvers": TXT_VERSION,
        "proto": "openai",
        "path": advert.path,
        "auth": "bearer" if advert.needs_key else "none",
        "tls": "1" if advert.has_tls else "0",
        "ver": advert.version,
        "id": advert.id,
    }
    listed = {f"m{number}": model for number, model in enumerate(advert.model_ids)}
    if len(listed) <= MAX_LISTED_MODELS and _fits(fields | listed):
        return fields | listed
    fields["models"] = str(len(advert.model_ids))
    assert _fits(fields), "what is not a model's name is short"
    return fields


def saturn_txt(advert: Advert) -> dict[str, str]:
    """The fields of the `_saturn._tcp` record. Nothing secret: others put a key there."""
    return {
        "version": "1",
        "api_type": "openai",
        "deployment": "network",
        "priority": str(SATURN_PRIORITY),
        "features": "chat,tools",
        "id": advert.id,
    }


def pack_txt(fields: Mapping[str, str]) -> bytes:
    """The record's bytes: each `key=value` after its length."""
    strings = [f"{key}={value}".encode() for key, value in fields.items()]
    return b"".join(bytes([len(string)]) + string for string in strings)


def decode_txt(name: str, port: int, properties: Mapping[bytes, bytes | None]) -> Advert | None:
    """The server that a record describes; None if it is foreign or damaged."""
    fields = _fields(properties)
    if fields is None or not _is_shown(name, MAX_NAME_BYTES) or not 0 < port <= 0xFFFF:
        return None
    if (fields.get("txtvers"), fields.get("proto")) != (TXT_VERSION, "openai"):
        return None
    id, auth, tls = fields.get("id", ""), fields.get("auth"), fields.get("tls")
    path, version = fields.get("path", ""), fields.get("ver", "")
    if not is_id(id) or auth not in ("bearer", "none") or tls not in ("0", "1"):
        return None
    if not re.fullmatch(r"/[A-Za-z0-9/._~-]*", path) or not version:
        return None
    return Advert(
        name=name,
        port=port,
        id=id,
        model_ids=tuple(_models(fields)),
        needs_key=auth == "bearer",
        has_tls=tls == "1",
        version=version,
        path=path,
    )


def is_id(text: str) -> bool:
    """Whether it is a UUID as we write it."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Whether it is a name of the local network, as a URL can carry it."""
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return len(text) <= MAX_STRING_BYTES and bool(re.fullmatch(rf"({label}\.)+local", text))


def _fields(properties: Mapping[bytes, bytes | None]) -> dict[str, str] | None:
    """Keys are ASCII of any case. None if there is too much, or what no terminal should show."""
    if sum(len(key) + len(value or b"") + 2 for key, value in properties.items()) > (
        MAX_FOREIGN_TXT_BYTES
    ):
        return None
    fields = {}
    for key, value in properties.items():
        try:
            text = (value or b"").decode()
        except UnicodeDecodeError:
            return None
        if not _is_shown(text or "-", MAX_STRING_BYTES):
            return None
        fields[key.decode("ascii", "replace").lower()] = text
    return fields


def _models(fields: Mapping[str, str]) -> Iterator[str]:
    for number in range(MAX_LISTED_MODELS):
        if not fields.get(f"m{number}"):
            return
        yield fields[f"m{number}"]


def _is_shown(text: str, limit_bytes: int) -> bool:
    """Printable, so that no terminal can be made to do something by a name."""
    return bool(text) and text.isprintable() and len(text.encode()) <= limit_bytes


def _fits(fields: Mapping[str, str]) -> bool:
    lengths = [len(f"{key}={value}".encode()) for key, value in fields.items()]
    return max(lengths) <= MAX_STRING_BYTES and sum(lengths) + len(lengths) <= MAX_TXT_BYTES


def _cut(text: str, limit_bytes: int) -> str:
    """The longest beginning that fits, in whole characters."""
    return text.encode()[:limit_bytes].decode(errors="ignore")
