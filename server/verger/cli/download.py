"""Files that arrive whole or not at all: resumed where they broke off, checked, then renamed.

Used by `verger pull` for one folder. A file under way is `NAME.KEY.part`, where KEY stands for its
content, so that a rest is never put behind the beginning of something else. Must not know HTTP.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from verger.errors import DownloadError

MAX_FRUITLESS = 5
"""So many attempts in a row may bring nothing."""
FIRST_PAUSE_S = 1.0
"""Before another attempt; doubled after each that brings nothing."""
KEY_CHARACTERS = 16
HASH_BYTES = 1 << 22


class Interrupted(Exception):
    """The bytes stopped coming; another attempt may bring more."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its hub describes it."""

    name: str
    """With its folders, below the model's."""
    size_bytes: int
    sha256: str | None
    """None for the small ones, of which the hub knows the size only."""

    def part(self, folder: Path) -> Path:
        """Where it is until all of it is there."""
        key = self.sha256 or f"{self.size_bytes:x}"
        return folder / f"{self.name}.{key[:KEY_CHARACTERS]}.part"

    def is_intact(self, path: Path) -> bool:
        """Whether the path holds exactly this."""
        if not path.is_file() or path.stat().st_size != self.size_bytes:
            return False
        return self.sha256 is None or _sha256(path) == self.sha256

    def held_bytes(self, folder: Path) -> int:
        """How much of it a folder has, unchecked."""
        for path in (folder / self.name, self.part(folder)):
            if path.is_file():
                return min(path.stat().st_size, self.size_bytes)
        return 0


@dataclass(frozen=True, slots=True)
class Body:
    """What an attempt brings: the bytes from `start` on."""

    start: int
    chunks: Iterator[bytes]


OpenBody = Callable[[RemoteFile, int], AbstractContextManager[Body]]
"""A file's bytes from an offset on; raises Interrupted or DownloadError."""
Advance = Callable[[int], None]
"""Told of bytes that came; negative if they turned out to be worthless."""


def fetch(
    file: RemoteFile,
    folder: Path,
    open_body: OpenBody,
    advance: Advance,
    sleep: Callable[[float], None],
) -> None:
    """Have the file in the folder, checked. Raises DownloadError; what came by then stays, unless
    it is wrong."""
    target, part = folder / file.name, file.part(folder)
    try:
        if file.is_intact(target):
            advance(file.size_bytes)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        _complete(file, part, open_body, advance, sleep)
        if not file.is_intact(part):
            part.unlink()
            advance(-file.size_bytes)
            raise DownloadError(
                f"{file.name} came with another checksum than the hub names, and was removed: run "
                "the same command again; if it happens again, something on the way changes files"
            )
        part.replace(target)
    except OSError as error:
        raise DownloadError(
            f"cannot write {error.filename or part}: {error.strerror}; what has come so far is "
            "kept: make room, or put right what is wrong, and run the same command again"
        ) from error


def _complete(
    file: RemoteFile,
    part: Path,
    open_body: OpenBody,
    advance: Advance,
    sleep: Callable[[float], None],
) -> None:
    """Attempt after attempt, until the part has the file's size."""
    held = part.stat().st_size if part.is_file() else 0
    if held > file.size_bytes:
        part.unlink()
        held = 0
    advance(held)
    part.touch()
    fruitless, reason = 0, "it ends too early"
    while held < file.size_bytes:
        before = held
        try:
            held = _append(file, part, open_body, advance)
        except Interrupted as error:
            reason, held = str(error), part.stat().st_size
        if held > before:
            fruitless = 0
            continue
        fruitless += 1
        if fruitless >= MAX_FRUITLESS:
            raise DownloadError(
                f"{file.name} stopped coming at {held:,} of {file.size_bytes:,} bytes ({reason}): "
                "run the same command again, it goes on there"
            )
        sleep(FIRST_PAUSE_S * 2 ** (fruitless - 1))


def _append(file: RemoteFile, part: Path, open_body: OpenBody, advance: Advance) -> int:
    """One attempt; how long the part is after it."""
    held = part.stat().st_size
    with open_body(file, held) as body, part.open("r+b") as output:
        if body.start != held:
            advance(body.start - held)
            held = body.start
        output.truncate(held)
        output.seek(held)
        for chunk in body.chunks:
            if held + len(chunk) > file.size_bytes:
                raise DownloadError(f"{file.name} is longer than the hub says: nothing is taken")
            output.write(chunk)
            held += len(chunk)
            advance(len(chunk))
        output.flush()
        os.fsync(output.fileno())
    return held


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
