"""Stop strings: cuts a growing text before the first of up to four strings.

Called by `api/` with the text of the final channel only. Must not know tokens or channels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_STOP_STRINGS = 4


class _Match(NamedTuple):
    """Sorts by end: whichever string is complete first wins, however the text was cut to pieces."""

    end: int
    start: int


class StopStrings:
    """Feed it pieces; what it returns can be shown, for no part of it belongs to a stop string."""

    def __init__(self, strings: Sequence[str]) -> None:
        assert len(strings) <= MAX_STOP_STRINGS
        self._strings = [string for string in strings if string]
        self._held = ""
        self.is_found = False

    def feed(self, text: str) -> str:
        """The text that is now known to stand before any stop string; nothing once one is found."""
        if self.is_found:
            return ""
        if not self._strings:
            return text
        self._held += text
        if matches := sorted(self._matches()):
            self.is_found = True
            return self._release(matches[0].start)
        return self._release(len(self._held) - self._open_characters())

    def flush(self) -> str:
        """The text held back, when no more will come."""
        return "" if self.is_found else self._release(len(self._held))

    def _matches(self) -> Iterator[_Match]:
        for string in self._strings:
            start = self._held.find(string)
            if start >= 0:
                yield _Match(start + len(string), start)

    def _release(self, characters: int) -> str:
        released, self._held = self._held[:characters], self._held[characters:]
        return released

    def _open_characters(self) -> int:
        """The length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._strings)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(string.startswith(tail) for string in self._strings):
                return length
        return 0
