"""The archive of a backup: a tar with a manifest, written privately and read with distrust.

    manifest.json    schema_version, Verger's version, and of each file its name, size and SHA-256
    the files        in the manifest's order, each with nothing but its name and content

Called by `backup`. Must not know what the files mean, except which names there may be.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from verger import __version__
from verger.errors import BackupError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MAX_FILES = 1_000
MAX_MANIFEST_BYTES = 2**20
MAX_BYTES = 64 * 2**30
NAMES = re.compile(
    r"config\.toml|instance_id|verger\.db|(?:secrets|tls)/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
)
"""All that may be in an archive; so no name can lead out of the state folder."""
_CHUNK_BYTES = 2**20


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the archive."""

    name: str
    bytes: int
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The archive's first member."""

    schema_version: int
    version: str
    files: list[Entry]


def write_archive(file: Path, sources: Mapping[str, Path]) -> None:
    """Name in the archive → the file to copy. 0600, whole or not at all. Raises OSError."""
    entries = [Entry(name, path.stat().st_size, digest(path)) for name, path in sources.items()]
    manifest = Manifest(schema_version=SCHEMA_VERSION, version=__version__, files=entries)
    partial = file.with_name(f".{file.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, MANIFEST, io.BytesIO(msgspec.json.encode(manifest)))
                for name, path in sources.items():
                    with path.open("rb") as content:
                        _add(archive, name, content)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_archive(file: BinaryIO, folder: Path) -> list[str]:
    """Check all of it, with its files written to the new `folder`, 0600. Raises BackupError."""
    folder.mkdir(mode=0o700)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            manifest = _manifest(archive)
            for entry in manifest.files:
                _extract(archive, entry, folder / entry.name)
            if archive.next() is not None:
                raise BackupError(f"{file.name} holds more than its manifest names")
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{file.name} is no archive of `verger backup`: {error}") from None
    return [entry.name for entry in manifest.files]


def _add(archive: tarfile.TarFile, name: str, content: io.IOBase) -> None:
    member = tarfile.TarInfo(name)
    member.size = content.seek(0, os.SEEK_END)
    member.mode = 0o600
    content.seek(0)
    archive.addfile(member, content)


def _manifest(archive: tarfile.TarFile) -> Manifest:
    member = archive.next()
    if member is None or member.name != MANIFEST or not member.isreg():
        raise BackupError("the archive does not begin with a manifest: `verger backup` made none")
    if member.size > MAX_MANIFEST_BYTES:
        raise BackupError(f"the archive's manifest is longer than {MAX_MANIFEST_BYTES} bytes")
    content = archive.extractfile(member)
    assert content is not None
    try:
        manifest = msgspec.json.decode(content.read(), type=Manifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"the archive's manifest is damaged: {error}") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise BackupError(
            f"the archive was made by Verger {manifest.version}, in a format that this version "
            "does not read; use that one"
        )
    _check_entries(manifest.files)
    return manifest


def _check_entries(entries: list[Entry]) -> None:
    names = [entry.name for entry in entries]
    if len(names) > MAX_FILES:
        raise BackupError(f"the archive holds more than {MAX_FILES} files")
    if len(set(names)) != len(names):
        raise BackupError("the archive holds a file twice")
    for entry in entries:
        if not NAMES.fullmatch(entry.name):
            raise BackupError(f"the archive holds {entry.name!r}, which no backup has")
    if any(entry.bytes < 0 for entry in entries) or sum(e.bytes for e in entries) > MAX_BYTES:
        raise BackupError(f"the archive holds more than {MAX_BYTES} bytes")


def _extract(archive: tarfile.TarFile, entry: Entry, target: Path) -> None:
    member = archive.next()
    if member is None or member.name != entry.name or not member.isreg():
        raise BackupError(f"the archive lacks {entry.name}, or it is no file")
    if member.size != entry.bytes:
        raise BackupError(f"{entry.name} in the archive is not as long as its manifest says")
    content = archive.extractfile(member)
    assert content is not None
    target.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as writing:
        while chunk := content.read(_CHUNK_BYTES):
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    if digest(target) != entry.sha256:
        raise BackupError(f"{entry.name} in the archive is damaged")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
