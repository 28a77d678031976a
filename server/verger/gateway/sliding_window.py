"""At most so many events in any span of time. Pure: the caller says what time it is.

Used for requests of a key and for wrong keys from an address.
"""

from collections import deque


class SlidingWindow:
    """Remembers when the last `limit` events were, and no more."""

    def __init__(self, limit: int, window_s: float = 60.0) -> None:
        self._window_s = window_s
        self._times_s: deque[float] = deque(maxlen=limit)

    def wait_s(self, now_s: float) -> float:
        """How long until there is room for another event; 0 if there is now."""
        if len(self._times_s) < (self._times_s.maxlen or 0):
            return 0.0
        return max(0.0, self._times_s[0] + self._window_s - now_s)

    def note(self, now_s: float) -> None:
        """An event; the oldest one is forgotten."""
        self._times_s.append(now_s)
