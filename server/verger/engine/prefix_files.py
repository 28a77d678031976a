"""Which parts of the prefix tree are on disk, under which names: bookkeeping, no file is touched.

Part of the prefix cache; its owner carries names and payloads between here and the disk tier
(`disk.py`), which writes, reads and removes the files. Must not know folders, threads, clocks or
MLX.

A file holds the KV of one node and the window at its end. Its name is a digest of all ids from the
root, of the tenant and of the engine's fingerprint, so it does not depend on how the tree is split:

    to_save ─► being written ─ saved ─► readable ─ read ─► in memory as well
                     └─ not ok ─► forgotten ◄─ lost ─┘

A file is written only when the part before it has one, and removed only when nothing behind it has:
at the next start `adopt` finds the whole way down to each.
"""

import hashlib
import heapq
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import Struct

from verger.engine.prefix_node import File, Kind, Node, below, ids_of
from verger.engine.prefix_tree import PrefixTree
from verger.engine.steps import FreeSpan, Import, Running, Stored

SAVE_IDLE_S = 60.0
"""What was not reused is saved after so long; doubled with each time that saving failed."""
MAX_SAVE_DOUBLINGS = 6
DIGEST_DIGITS = 32
"""Hexadecimal: 128 bits of a sha256."""


class FileHeader(Struct, frozen=True):
    """What a file of the disk tier holds: the KV of one span, and maybe the window at its end.

    `name` and `parent` say where it belongs: digests of all ids from the root, salted and bound to
    the engine's fingerprint, up to the span's end and up to its start.
    """

    name: str
    salt: str
    start: int
    """Position of the span's first token."""
    tokens: list[int]
    """The span's ids."""
    parent: str
    kv_bytes: int
    window_bytes: int
    window_tokens: int
    """Positions in the window behind the span; 0: there is none."""

    @property
    def stop(self) -> int:
        """The position behind the span's last token."""
        return self.start + len(self.tokens)

    @property
    def payload_bytes(self) -> int:
        """What follows the header in the file."""
        return self.kv_bytes + self.window_bytes


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """Export these positions and the window, before any edit that follows, and write them; then say
    how it went: `saved`."""

    header: FileHeader
    source: Stored | Running
    window_id: int | None


class PrefixFiles:
    """What of a tree is on disk."""

    def __init__(self, tree: PrefixTree, fingerprint: str) -> None:
        self._tree = tree
        self._fingerprint = fingerprint

    @property
    def count(self) -> int:
        """Files, with those being written."""
        return len(self._tree.files)

    @property
    def file_bytes(self) -> int:
        """Their payloads together."""
        return self._tree.file_bytes

    # -- writing
    def to_save(self, now_s: float, limit: int) -> list[SaveOrder]:
        """What is in memory and not on disk, and was reused or idle for a while; parents first.
        Walks the whole tree: not for every step."""
        orders: list[SaveOrder] = []
        waiting = [node for root in self._tree.roots.values() for node in root.children.values()]
        while waiting and len(orders) < limit:
            node = waiting.pop()
            if node.file is None:
                if not _is_worth_saving(node, now_s):
                    continue
                orders.append(self.order(node))
            waiting.extend(node.children.values())
        return orders

    def order(self, node: Node) -> SaveOrder:
        """Mark a node in memory as being written; what comes before it has a file."""
        assert node.parent is not None
        geometry = self._tree.geometry
        has_window = node.window_id is not None
        header = FileHeader(
            name=self._name(node, node.start),
            salt=node.salt,
            start=node.start,
            tokens=node.tokens.tolist(),
            parent=self._digits(node.parent),
            kv_bytes=self._tree.span_bytes(node),
            window_bytes=geometry.window_bytes(node.stop) if has_window else 0,
            window_tokens=min(node.stop, geometry.window - 1) if has_window else 0,
        )
        assert header.name not in self._tree.files
        self._tree.set_file(node, _file_of(header, is_saved=False))
        return SaveOrder(header, _source_of(node), node.window_id)

    def saved(self, name: str, ok: bool) -> None:
        """A file has been written, or could not be; one that is not needed any more is no error."""
        file = self._tree.files.get(name)
        if file is None:
            return
        if ok:
            file.is_saved = True
            return
        for node in file.nodes:
            node.failed_saves += 1
        self.lost(name)

    # -- reading
    def readable(self, path: list[Node]) -> list[Node]:
        """The part of a path down to the deepest checkpoint that is in memory or can be read, be
        it only once it has been written."""
        deepest = 0
        for index, node in enumerate(path, start=1):
            if not node.is_at_hand and node.file is None:
                break
            if node.window_id is not None or node.has_file_window:
                deepest = index
        return path[:deepest]

    def read(self, name: str, payload: bytes, now_s: float, *, with_window: bool = True) -> None:
        """Put into memory what of a file is not there, as far as what comes before it is. There
        must be room for it; a file that meanwhile is not needed, or is made anew, is no error."""
        file = self._tree.files.get(name)
        if file is None or not file.is_saved or len(payload) != file.nbytes:
            return
        for node in sorted(file.nodes, key=_start):
            assert node.parent is not None
            if node.parent.is_at_hand:
                node.used_s = now_s
                self._import(node, file, payload, with_window)

    def _import(self, node: Node, file: File, payload: bytes, with_window: bool) -> None:
        tree = self._tree
        is_missing = not node.is_at_hand
        window_id = None
        if with_window and node.has_file_window and node.window_id is None:
            window_id = tree.new_window_id()
        if not is_missing and window_id is None:
            return
        span_id = tree.store(node) if is_missing else tree.take_span_id()
        first, stop = node.start - file.start, node.stop - file.start
        tokens = file.stop - file.start
        tree.emit(Import(payload, tokens, file.window_tokens, first, stop, span_id, window_id))
        if not is_missing:
            tree.emit(FreeSpan(span_id))
        if window_id is not None:
            tree.add_window(node, window_id)
        else:
            # Nobody can go on from here yet, but it must not be there for ever.
            tree.evictor.add(node)
        tree.evictor.touch(node.parent)

    # -- forgetting
    def lost(self, name: str) -> None:
        """A file is not there, or damaged: what was nowhere else is unknown from now on, and what
        was behind that."""
        file = self._tree.files.get(name)
        if file is not None:
            self._forget(file)
            self._tree.unused_files.remove(name)

    def over(self, limit_bytes: int) -> list[str]:
        """Files to remove: those that no node needs, and then, ends first, those that were not used
        for longest, until the others fit."""
        tree = self._tree
        ends = [(*_use(file), name) for name, file in tree.files.items() if _is_end(file)]
        heapq.heapify(ends)
        while tree.file_bytes > limit_bytes and ends:
            file = tree.files.get(heapq.heappop(ends)[-1])
            if file is None:
                continue
            above = min(file.nodes, key=_start).parent
            self._forget(file)
            while above is not None and above.file is None:
                above = above.parent
            if above is not None and above.file is not None and _is_end(above.file):
                heapq.heappush(ends, (*_use(above.file), above.file.name))
        unused, tree.unused_files = tree.unused_files, []
        return unused

    def _forget(self, file: File) -> None:
        while file.nodes:
            node = min(file.nodes, key=_start)
            self._tree.drop_file(node)
            self._tree.prune(node)

    # -- at the start
    def adopt(self, headers: Iterable[FileHeader], now_s: float = 0.0) -> list[str]:
        """Make the tree of an earlier run from what it left on disk. The names of files that are of
        no use, which should be removed."""
        refused: list[str] = []
        ends: dict[str, Node] = {}
        for header in sorted(headers, key=lambda header: (header.start, header.name)):
            file = _file_of(header, is_saved=True)
            above = self._place_of(header, ends) if self._is_sound(header) else None
            if above is not None and self._is_named(header, above):
                self._adopt(file, above, ids_of(header.tokens), ends, now_s)
            if not file.nodes:
                refused.append(header.name)
        for root in list(self._tree.roots.values()):
            for node in [n for n in below(root) if not n.children]:
                self._tree.prune(node)
            if not root.children:
                self._tree.prune(root)
        unused, self._tree.unused_files = self._tree.unused_files, []
        return list(dict.fromkeys(refused + unused))

    def _adopt(
        self, file: File, above: Node, ids: "array[int]", ends: dict[str, Node], now_s: float
    ) -> None:
        for node in self._tree.spell(above, ids, now_s):
            if node.file is None:
                self._tree.set_file(node, file)
            node.path_kind = Kind.END
            ends[self._digits(node)] = node

    def _is_sound(self, header: FileHeader) -> bool:
        geometry = self._tree.geometry
        window_tokens = min(header.stop, geometry.window - 1)
        window_bytes = geometry.window_bytes(header.stop)
        return (
            0 <= header.start < header.stop
            and header.kv_bytes == len(header.tokens) * geometry.token_bytes
            and (header.window_tokens, header.window_bytes)
            in ((0, 0), (window_tokens, window_bytes))
        )

    def _is_named(self, header: FileHeader, above: Node) -> bool:
        """Whether it is what its name says."""
        digest = self._digest(above).copy()
        digest.update(ids_of(header.tokens).tobytes())
        return header.name == _name(digest, header.start)

    def _place_of(self, header: FileHeader, ends: dict[str, Node]) -> Node | None:
        """The node that ends where the file begins; a node that goes on from there is split."""
        root = self._tree.root(header.salt)
        if header.start == 0:
            return root if header.parent == self._digits(root) else None
        node = ends.get(header.parent)
        if node is not None:
            return node if (node.salt, node.stop) == (header.salt, header.start) else None
        for node in below(root):
            tokens = header.start - node.start
            if 0 < tokens < len(node.tokens) and self._digits_inside(node, tokens) == header.parent:
                upper = ends[header.parent] = self._tree.split(node, tokens)
                return upper
        return None

    # -- digests
    def _digest(self, node: Node) -> "hashlib._Hash":
        """Of all ids up to the node's end."""
        root = node
        while root.parent is not None:
            root = root.parent
        if root.digest is None:
            tenant = f"{len(self._fingerprint)} {self._fingerprint} {root.salt}"
            root.digest = hashlib.sha256(tenant.encode())
        digest = root.digest
        for link in node.path():
            if link.digest is None:
                link.digest = digest.copy()
                link.digest.update(link.tokens.tobytes())
            digest = link.digest
        return digest

    def _digits(self, node: Node) -> str:
        return self._digest(node).hexdigest()[:DIGEST_DIGITS]

    def _digits_inside(self, node: Node, tokens: int) -> str:
        assert node.parent is not None
        digest = self._digest(node.parent).copy()
        digest.update(node.tokens[:tokens].tobytes())
        return digest.hexdigest()[:DIGEST_DIGITS]

    def _name(self, node: Node, start: int) -> str:
        return _name(self._digest(node), start)

    def check_integrity(self) -> None:
        """Assert that names say what the files hold; for randomised tests."""
        for name, file in self._tree.files.items():
            for node in file.nodes:
                if node.stop == file.stop:
                    assert name == self._name(node, file.start)


def names_of(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The files to read, in this order, for these nodes and the checkpoint at their end."""
    missing = [node.file for node in nodes if not node.is_at_hand]
    if nodes and nodes[-1].window_id is None:
        missing.append(nodes[-1].file)
    return tuple(dict.fromkeys(file.name for file in missing if file is not None))


def _source_of(node: Node) -> Stored | Running:
    if node.span_id is not None:
        return Stored(node.span_id, node.start, node.stop)
    return Running(min(node.rows), node.start, node.stop)


def _is_worth_saving(node: Node, now_s: float) -> bool:
    if not node.is_at_hand:
        return False
    was_reused = node.uses > 0 and node.failed_saves == 0
    wait_s = SAVE_IDLE_S * 2 ** min(node.failed_saves, MAX_SAVE_DOUBLINGS)
    is_idle = node.span_id is not None and now_s - node.used_s >= wait_s
    return was_reused or is_idle


def _file_of(header: FileHeader, is_saved: bool) -> File:
    return File(
        header.name,
        header.start,
        header.stop,
        header.payload_bytes,
        header.window_tokens,
        is_saved,
    )


def _name(digest: "hashlib._Hash", start: int) -> str:
    return f"{digest.hexdigest()[:DIGEST_DIGITS]}{start:08x}"


def _start(node: Node) -> int:
    return node.start


def _use(file: File) -> tuple[bool, float]:
    """Those to go first come first: not waited for, not used for long."""
    return any(node.wanted for node in file.nodes), max(node.used_s for node in file.nodes)


def _is_end(file: File) -> bool:
    """Whether it is written and no file holds what comes behind it."""
    children = (child for node in file.nodes for child in node.children.values())
    return file.is_saved and all(child.file is None or child.file is file for child in children)
