"""service.json: what the last install has put on this Mac, so that later commands can tell.

Written by an install, read by all of `verger service`. Holds no secret; everybody may read it.
"""

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from verger.errors import ServiceDrift

SCHEMA_VERSION = 1


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was installed."""

    schema_version: int = SCHEMA_VERSION
    version: str
    environment: str
    plist_sha256: str


def encode_record(record: Record) -> bytes:
    """As a person may want to read it."""
    return msgspec.json.format(msgspec.json.encode(record)) + b"\n"


def read_record(file: Path) -> Record | None:
    """None where nothing was installed. Raises ServiceDrift for what no install has written."""
    try:
        record = msgspec.json.decode(file.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceDrift(f"cannot read {file}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ServiceDrift(
            f"{file} is damaged ({error}); remove it, then: sudo verger service install"
        ) from None
    if record.schema_version != SCHEMA_VERSION:
        raise ServiceDrift(f"{file} was written by another version of Verger; use that one")
    return record


def digest_of(plist: bytes) -> str:
    """By which an edited plist is told from one that an older version has written."""
    return hashlib.sha256(plist).hexdigest()
