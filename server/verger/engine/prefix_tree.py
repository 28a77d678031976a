"""The prefix tree itself: keeps nodes, spans and windows in step with the bytes they take.

The prefix cache and the bookkeeping of files change the tree through this only, so there is one
place where an edit is emitted for a span or window, and where a node is made, split or removed.
Must not know requests' lives, prices or what is worth a file.
"""

import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Sequence

from verger.engine.eviction import Evictor
from verger.engine.prefix_node import (
    SHARED,
    File,
    Node,
    below,
    check_node,
    ids_of,
    shared_tokens,
    split_above,
    walk,
)
from verger.engine.steps import Edit, FreeSpan, FreeWindow, KVGeometry, Split


class PrefixTree:
    """Used within the prefix cache."""

    def __init__(
        self, geometry: KVGeometry, evictor: Evictor, emit: Callable[[Edit], None]
    ) -> None:
        self.geometry = geometry
        self.evictor = evictor
        self.emit = emit
        self.nodes = 0
        self.held_bytes = 0
        self.roots: dict[str, Node] = {}
        self.files: dict[str, File] = {}
        self.file_bytes = 0
        self.unused_files: list[str] = []
        """Names of files that no node needs; whoever removes files takes them from here."""
        self._wants: dict[int, list[Node]] = {}
        self._node_ids = itertools.count(1)
        self._span_ids = itertools.count(1)
        self._window_ids = itertools.count(1)
        self._promotions = itertools.count(SHARED - 1, -1)

    # -- ways through it
    def root(self, salt: str) -> Node:
        """The root of a tenant's tree, made if need be."""
        root = self.roots.get(salt)
        if root is None:
            root = self.roots[salt] = Node(0, salt, None, ids_of(()), 0, SHARED)
        return root

    def path(self, salt: str, prompt: Sequence[int], limit: int) -> list[Node]:
        """The nodes on the way of a prompt that end at or before `limit`."""
        root = self.roots.get(salt)
        return list(walk(root, ids_of(prompt[: max(limit, 0)]))) if root else []

    def spell(self, node: Node, rest: "array[int]", now_s: float) -> list[Node]:
        """The nodes below `node` that spell `rest`, split and made as needed. Those that are new
        have no KV yet: the caller must cover, store or file them, or prune."""
        path: list[Node] = []
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                child = self._add(node, rest, now_s)
            else:
                shared = shared_tokens(child.tokens, rest)
                if shared < len(child.tokens):
                    child = self.split(child, shared)
            path.append(child)
            rest = rest[len(child.tokens) :]
            node = child
        return path

    def split(self, node: Node, tokens: int) -> Node:
        """The new node above, of its first `tokens` ids."""
        upper = split_above(node, tokens, next(self._node_ids))
        self.nodes += 1
        if node.span_id is not None:
            upper.span_id = next(self._span_ids)
            self.emit(Split(node.span_id, upper.span_id, tokens))
        self.evictor.touch(node)
        return upper

    def prune(self, node: Node) -> None:
        """Remove a node that is of no use, and what is of no use without it."""
        while node.parent is not None and not node.is_of_use:
            above = node.parent
            for lost in reversed([node, *below(node)]):
                self._remove(lost)
            node = above
        if node.parent is None and not node.children and not node.rows:
            self.roots.pop(node.salt, None)

    # -- conversations
    def conversation_of(self, salt: str, prompt: Sequence[int]) -> float:
        """How old the conversation is that a prompt goes on with; inf for one that begins."""
        path = self.path(salt, prompt, len(prompt))
        is_known = bool(path) and path[-1].conversation != SHARED
        return path[-1].conversation if is_known else math.inf

    def share(self, node: Node) -> None:
        """Conversations begin behind this node: each of its children is one."""
        if node.conversation == SHARED:
            return
        for link in node.path():
            link.conversation = SHARED
        for child in node.children.values():
            for link in [child, *below(child)]:
                link.conversation = child.node_id
                self.evictor.touch(link)

    def promote(self, path: Iterable[Node]) -> None:
        """Make a conversation the oldest."""
        conversation = next(self._promotions)
        for node in path:
            if node.conversation != SHARED:
                node.conversation = conversation
                self.evictor.touch(node)

    # -- spans and windows
    def new_window_id(self) -> int:
        """An id for a window to be made."""
        return next(self._window_ids)

    def store(self, node: Node) -> int:
        """The node's KV will be a span; its id."""
        assert not node.is_at_hand
        node.span_id = next(self._span_ids)
        self.held_bytes += self.span_bytes(node)
        return node.span_id

    def unstore(self, node: Node) -> None:
        """Its span, if it has one, will be gone when it has been copied into a row."""
        if node.span_id is not None:
            self.held_bytes -= self.span_bytes(node)
            node.span_id = None

    def free_span(self, node: Node) -> None:
        """Free its span, if it has one."""
        if node.span_id is not None:
            self.emit(FreeSpan(node.span_id))
            self.unstore(node)

    def take_span_id(self) -> int:
        """An id for a span that no node keeps."""
        return next(self._span_ids)

    def add_window(self, node: Node, window_id: int) -> None:
        """The node becomes a checkpoint."""
        assert node.window_id is None
        node.window_id = window_id
        self.held_bytes += self.geometry.window_bytes(node.stop)
        self.evictor.add(node)

    def free_window(self, node: Node) -> None:
        """The node is no checkpoint any more, in memory."""
        if node.window_id is None:
            return
        self.emit(FreeWindow(node.window_id))
        node.window_id = None
        self.held_bytes -= self.geometry.window_bytes(node.stop)
        self.evictor.remove(node)
        if not node.has_file_window:
            self._pass_on_wants(node)

    def span_bytes(self, node: Node) -> int:
        """What its KV takes as a span."""
        return len(node.tokens) * self.geometry.token_bytes

    # -- files
    def set_file(self, node: Node, file: File) -> None:
        """The node's KV is, or will be, in that file."""
        self.drop_file(node)
        node.file = file
        file.nodes.add(node)
        if file.name not in self.files:
            self.files[file.name] = file
            self.file_bytes += file.nbytes
        if file.name in self.unused_files:
            self.unused_files.remove(file.name)
        self.evictor.touch(node)

    def drop_file(self, node: Node) -> None:
        """Forget where the node is on disk; prune it afterwards."""
        file = node.file
        if file is None:
            return
        file.nodes.discard(node)
        node.file = None
        self.evictor.touch(node)
        if node.window_id is None:
            self._pass_on_wants(node)
        if not file.nodes:
            del self.files[file.name]
            self.file_bytes -= file.nbytes
            self.unused_files.append(file.name)

    # -- wants
    def want(self, request_id: int, nodes: Iterable[Node]) -> None:
        """A waiting request will begin at one of these checkpoints."""
        assert request_id not in self._wants
        wanted = self._wants[request_id] = []
        for node in nodes:
            self._mark_wanted(wanted, node)

    def unwant(self, request_id: int) -> None:
        """It waits no longer; unknown ones are no error."""
        for node in self._wants.pop(request_id, ()):
            node.wanted -= 1
            self.evictor.touch(node)

    def _mark_wanted(self, wanted: list[Node], node: Node) -> None:
        if node not in wanted:
            wanted.append(node)
            node.wanted += 1
            self.evictor.touch(node)

    def _pass_on_wants(self, node: Node) -> None:
        """Who waits for a checkpoint that is gone will begin at the one before it."""
        if not node.wanted:
            return
        above = reversed(node.path()[:-1])
        before = next((n for n in above if n.window_id is not None or n.has_file_window), None)
        node.wanted = 0
        for wanted in self._wants.values():
            if node in wanted:
                wanted.remove(node)
                if before is not None:
                    self._mark_wanted(wanted, before)

    def _add(self, parent: Node, tokens: "array[int]", now_s: float) -> Node:
        node_id = next(self._node_ids)
        is_first = parent.conversation == SHARED
        conversation = node_id if is_first else parent.conversation
        node = Node(node_id, parent.salt, parent, tokens, parent.stop, conversation)
        node.used_s = now_s
        parent.children[tokens[0]] = node
        self.nodes += 1
        self.evictor.touch(parent)
        return node

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        assert node.window_id is None
        self.free_span(node)
        self.drop_file(node)
        self.evictor.remove(node)
        del node.parent.children[node.tokens[0]]
        self.nodes -= 1
        self.evictor.touch(node.parent)
        if node.parent.span_id is not None:
            # Read from disk for the sake of this one, it may have nothing behind it now.
            self.evictor.add(node.parent)

    # -- for tests
    def check_integrity(self) -> None:
        """Assert what must hold between any two calls."""
        nodes = [node for root in self.roots.values() for node in below(root)]
        assert len(nodes) == self.nodes
        stored = [node for node in nodes if node.span_id is not None]
        windows = [node for node in nodes if node.window_id is not None]
        assert len({node.span_id for node in stored}) == len(stored)
        assert len({node.window_id for node in windows}) == len(windows)
        assert self.held_bytes == sum(map(self.span_bytes, stored)) + sum(
            self.geometry.window_bytes(node.stop) for node in windows
        )
        for node in nodes:
            check_node(node)
            assert node.wanted == sum(node in wanted for wanted in self._wants.values())
            assert node.wanted == 0 or node.window_id is not None or node.has_file_window
        assert {n for wanted in self._wants.values() for n in wanted} <= set(nodes)
        assert all(root.children or root.rows for root in self.roots.values())
        self._check_files(nodes)
        self.evictor.check_integrity(nodes)

    def _check_files(self, nodes: list[Node]) -> None:
        assert all(self.files[node.file.name] is node.file for node in nodes if node.file)
        for name, file in self.files.items():
            assert file.name == name
            assert file.nodes
            assert file.nodes <= set(nodes)
            assert all(node.file is file for node in file.nodes)
        assert self.file_bytes == sum(file.nbytes for file in self.files.values())
        assert not self.files.keys() & set(self.unused_files)
