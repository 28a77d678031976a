"""Logging as key=value lines, on standard error or in a file that is rotated.

Called once by the CLI and once by the engine process, each of which has a file of its own; must not
know what is logged. Never log prompts, completions or keys.
"""

import logging
import os
import sys
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from verger.errors import ConfigError

FILE_MODE = 0o640
FOLDER_MODE = 0o750
MAX_CRASH_BYTES = 1 << 20
"""Beyond that a crash file is trimmed ..."""
KEPT_CRASH_BYTES = 256 << 10
"""... to about so much of its end."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file, and as many before it (`FILE.1` is the youngest), none larger than max_bytes."""

    path: Path
    max_bytes: int
    kept_files: int

    def beside(self, name: str) -> "LogFile":
        """The same bounds for another process: verger.log, verger-NAME.log."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return LogFile(path, self.max_bytes, self.kept_files)


def configure(file: LogFile | None = None, level: int = logging.INFO) -> None:
    """Send the `verger` loggers there, without a file to standard error; other libraries stay at
    WARNING. Raises ConfigError."""
    handler = logging.StreamHandler(sys.stderr) if file is None else _rotating(file)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("verger").setLevel(level)


def trim(file: Path) -> None:
    """Keep the end of a file that has grown too large, in place: whoever appends to it goes on.
    Raises OSError; a file that is not there is none that is too large."""
    if not file.exists() or file.stat().st_size <= MAX_CRASH_BYTES:
        return
    with file.open("r+b") as crashes:
        crashes.seek(-KEPT_CRASH_BYTES, os.SEEK_END)
        # What is left of the line in which it begins would only be misread.
        crashes.readline()
        kept = crashes.read()
        crashes.seek(0)
        crashes.write(kept)
        crashes.truncate()


def key_values(**fields: object) -> str:
    """`event=start port=8374 reason="two words"`; fields that are None are left out."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)


class _PrivateRotation(RotatingFileHandler):
    """The log says who asked when: it is not for everybody on this machine."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_open_private)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def _rotating(file: LogFile) -> RotatingFileHandler:
    try:
        file.path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        return _PrivateRotation(
            file.path, maxBytes=file.max_bytes, backupCount=file.kept_files, encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(
            f"cannot write the log {file.path}: {error.strerror}; give it to this user, or set "
            "log.file to another"
        ) from None


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text.isprintable() and text and not any(mark in text for mark in ' "='):
        return text
    # A path is the client's to choose: no byte of it may act on a terminal or begin a line.
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
