"""Who this server is, whatever its name and address: a UUID, made at its first start.

Called by `verger serve`. Clients remember it; it proves nothing by itself, as anybody can say it.
"""

import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from verger.errors import ConfigError


def instance_id(file: Path) -> str:
    """The UUID in the file; the first who asks has it made. Raises ConfigError."""
    try:
        if not file.exists():
            _create(file)
        text = file.read_text(encoding="ascii").strip()
        return str(UUID(text))
    except OSError as error:
        raise ConfigError(f"cannot keep this server's id in {file}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(
            f"{file} holds no id of a server; restore it, or delete it: clients that know this "
            "server will then be told that it is another one"
        ) from None


def _create(file: Path) -> None:
    """Whole or not at all; of two servers that start at once, the first to link makes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made = str(uuid4())
    partial = file.with_name(f"{file.name}.{made}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as writing:
            writing.write(f"{made}\n")
            writing.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(partial, file)
    finally:
        partial.unlink()
