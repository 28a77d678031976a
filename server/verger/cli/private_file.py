"""Writes files that others must not read, whole or not at all.

Used by the client commands. On Windows a file in the user's profile is private without a mode.
"""

import os
import tempfile
from pathlib import Path

PRIVATE_MODE = 0o600


def write_private(path: Path, content: bytes) -> None:
    """Replace the file; what stood there keeps its mode. Raises OSError."""
    # Dotfiles are often links into a repository; the link stays.
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE_MODE
    # Made with 0600.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
