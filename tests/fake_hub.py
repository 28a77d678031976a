"""A hub of models on loopback: the two routes that `verger pull` asks, over real HTTP.

It redirects to another address of its own, as the real one does, knows Range, and can be told to
cut, to change bytes, to ignore Range, or to answer with a status.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "orchard/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_NAMES = (".safetensors",)
RESOLVED = f"/{REPOSITORY}/resolve/{COMMIT}/"
FILES = "/files/"
STALL_LIMIT_S = 60.0


@dataclass
class FakeHub:
    """What it does can be changed while it runs; what it was asked is in `ranges`."""

    port: int
    files: dict[str, bytes]
    cut_after: list[int] = field(default_factory=list)
    """For each body to come, bytes after which the connection breaks; then whole ones."""
    wrong: set[str] = field(default_factory=set)
    """Files whose first byte is another one on the way."""
    statuses: list[int] = field(default_factory=list)
    """For the bodies to come, in place of the file."""
    knows_range: bool = True
    stall_after: int | None = None
    """Bytes of the weights after which nothing comes until `released`, and then the end."""
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    extra: list[dict[str, Any]] = field(default_factory=list)
    """Listed besides the files."""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """Name and offset of each body that was asked for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> Counter[str]:
        """How often each file's body was asked for."""
        return Counter(name for name, _ in self.ranges)

    def listing(self) -> dict[str, Any]:
        """As /api/models/…?blobs=True answers."""
        siblings = [self._sibling(name, content) for name, content in self.files.items()]
        return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings + self.extra}

    def describe(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """What /api/models/… answers: status, body, headers."""
        if path == f"/api/models/{REPOSITORY}/revision/main":
            return 200, json.dumps(self.listing()).encode(), {}
        code = "RevisionNotFound" if f"/{REPOSITORY}/" in path else "RepoNotFound"
        return 404, b"{}", {"x-error-code": code}

    def body(self, name: str, start: int) -> tuple[int, bytes]:
        """A file from an offset on, as far as that was not forbidden."""
        if self.statuses:
            return self.statuses.pop(0), b""
        if name not in self.files:
            return 404, b""
        content = self.files[name]
        if name in self.wrong:
            content = bytes([content[0] ^ 1]) + content[1:]
        return (206, content[start:]) if start and self.knows_range else (200, content)

    def next_cut(self, name: str) -> int | None:
        """After how many bytes this body's connection breaks."""
        if self.stall_after is not None and name.endswith(LFS_NAMES):
            return self.stall_after
        return self.cut_after.pop(0) if self.cut_after else None

    def stall(self, cut: int) -> None:
        """Where that was asked, before a connection breaks."""
        if cut == self.stall_after:
            self.stalled.set()
            self.released.wait(STALL_LIMIT_S)

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        if name.endswith(LFS_NAMES):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
        return sibling


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Serve until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith("/api/models/"):
                self.reply(*hub.describe(path))
            elif path.startswith(RESOLVED):
                self.reply(302, b"", {"location": FILES + path.removeprefix(RESOLVED)})
            else:
                self.send_file(path.removeprefix(FILES))

        def send_file(self, name: str) -> None:
            asked = self.headers.get("range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            hub.ranges.append((name, start))
            status, body = hub.body(name, start)
            cut = hub.next_cut(name)
            self.reply(status, body, {"etag": '"x"'}, cut)

        def reply(
            self,
            status: int,
            body: bytes,
            headers: dict[str, str] | None = None,
            cut: int | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True
                hub.stall(cut)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub = FakeHub(server.server_address[1], files)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.released.set()
            server.shutdown()
            thread.join()
