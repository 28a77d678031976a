"""One request's prefix on its way back from the disk: which files are still to come.

Owned by the KV budget, which reads for one request at a time and has made room for it first. Pure;
must not know bytes, prices or the disk itself.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ids

from verger.engine.sequence import Sequence


class Readback:
    """The files of one request, in the order in which they must come; the last has the checkpoint
    from which it goes on."""

    def __init__(self, sequence: Sequence, names: Ids[str], reserved_bytes: int) -> None:
        self.sequence = sequence
        self.last_name = names[-1]
        self.reserved_bytes = reserved_bytes
        """Room that others must leave: of what is still to come."""
        self._unasked = deque(names)
        self._awaited: set[str] = set()

    @property
    def is_done(self) -> bool:
        """Whether nothing is to come any more."""
        return not (self._unasked or self._awaited)

    def ask(self, read: Callable[[str], bool]) -> None:
        """Queue as many reads as the disk takes at present."""
        while self._unasked and read(self._unasked[0]):
            self._awaited.add(self._unasked.popleft())

    def take(self, name: str, nbytes: int) -> bool:
        """A file has come, or will not (0 bytes); False if it is not one of these."""
        if name not in self._awaited:
            return False
        self._awaited.remove(name)
        self.reserved_bytes = max(0, self.reserved_bytes - nbytes)
        return True
