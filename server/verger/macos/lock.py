"""One at a time: who changes the service holds this lock, and whoever dies gives it back.

Called by the CLI before it looks at what is there. It is flock(2) of a file that stays where it is:
were it removed, two could each hold one of their own. Must not know what is done meanwhile.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verger.errors import InstallError

MAX_HOLDER_BYTES = 200


@contextmanager
def alone(file: Path, command: str) -> Iterator[None]:
    """Raises InstallError, with what the other one is doing, if there is another one."""
    # Windows, where commands that import this module run too, has none.
    import fcntl

    try:
        # Nobody but root can open it, so nobody else can hold it.
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InstallError(f"cannot use {file}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, MAX_HOLDER_BYTES).decode(errors="replace")
            raise InstallError(
                f"another command is changing the service ({holder}): let it finish, then try again"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"verger {command}, process {os.getpid()}".encode())
        yield
    finally:
        os.close(lock)
