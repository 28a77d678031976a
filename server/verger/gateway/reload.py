"""SIGHUP: read configuration, certificates and whatever else has added itself here again.

The handler is `server`'s; parts are added by whoever owns what can change. Two phases: every part
reads and checks its new state first, and only if all of them could are all of them applied, so
that a bad file changes nothing. Must not know what the parts are.
"""

import logging
from collections.abc import Callable

from verger.errors import VergerError
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

Apply = Callable[[], None]
"""Puts into force what has been read; cannot fail."""
Read = Callable[[], Apply]
"""Reads and checks, changes nothing; raises VergerError or OSError."""


class Reloader:
    """Belongs to the event loop; reading is a matter of milliseconds."""

    def __init__(self) -> None:
        self._parts: dict[str, Read] = {}

    def add(self, name: str, reload: Read) -> None:
        """A part that is read again, in the order in which they are added."""
        assert name not in self._parts, f"{name} is added twice"
        self._parts[name] = reload

    def reload(self) -> None:
        """All or nothing; the log says which, and why."""
        applies = []
        for name, read in self._parts.items():
            try:
                applies.append(read())
            except (VergerError, OSError) as error:
                logger.error(key_values(event="reload_failed", part=name, reason=error))
                return
        for apply in applies:
            apply()
        logger.info(key_values(event="reloaded", parts=",".join(self._parts)))
