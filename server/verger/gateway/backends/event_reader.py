"""Server-sent events from strangers: bytes as they arrive → the data of each event, within a bound.

Used by `cloud`. Format: WHATWG HTML, "Server-sent events"; of line ends LF and CR LF, which is all
that servers send. Comments, names and ids of events are dropped. Pure.
"""

MAX_EVENT_BYTES = 1024 * 1024
"""Of one event, comments before it included. A whole answer in one event is far smaller."""


class OversizedEvent(Exception):
    """An event does not end within its bound."""


class EventReader:
    """One stream."""

    def __init__(self) -> None:
        self._rest = b""
        """A line that has not ended."""
        self._data: list[bytes] = []
        self._event_bytes = 0

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that end in what was received. Raises OversizedEvent."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = [data for line in lines if (data := self._take(line)) is not None]
        if self._event_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise OversizedEvent
        return events

    def _take(self, line: bytes) -> bytes | None:
        line = line.removesuffix(b"\r")
        if not line:
            data, self._data, self._event_bytes = self._data, [], 0
            return b"\n".join(data) if data else None
        self._event_bytes += len(line)
        if self._event_bytes > MAX_EVENT_BYTES:
            raise OversizedEvent
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif not name:
            # A comment is no part of an event: a flood of them is the clock's business.
            self._event_bytes -= len(line)
        return None
