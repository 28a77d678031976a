"""One node of the prefix tree: a run of token ids and where their KV is.

The tree (`prefix_tree.py`) owns the nodes; the evictor and the bookkeeping of files read them. A
node knows its neighbours and its file: no edits, no bytes, no clock.

    root ── system and tools ──┬── turn ── … ── end      one node from checkpoint to checkpoint;
                               └── turn ── …             a divergence inside one splits it
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum


class Kind(IntEnum):
    """What a checkpoint is good for; the higher, the likelier somebody goes on from there."""

    GRID = 0
    PROMPT = 1
    """The last position of a prompt that the same prompt can begin with."""
    END = 2
    """End of a finished answer, or of an interrupted one."""
    TURN = 3
    """Start of a user turn."""
    OPEN = 4
    """End of a tool call: its result will follow soon."""
    SYSTEM = 5
    """End of system and tools."""


SHARED = 0
"""In place of a conversation: what several begin with."""


@dataclass(slots=True, eq=False)
class File:
    """A file that holds the KV of positions start:stop of a prefix and maybe the window there."""

    name: str
    start: int
    stop: int
    nbytes: int
    window_tokens: int
    is_saved: bool
    """False while it is being written."""
    nodes: "set[Node]" = field(default_factory=set)
    """Those whose KV it holds: one when it is written, more once that has been split."""


@dataclass(slots=True, eq=False)
class Node:
    """Positions start:stop of a prefix. Their KV is a span, or in running rows, or on disk only."""

    node_id: int
    """Rises with creation."""
    salt: str
    parent: "Node | None"
    """None for a root, which has no ids."""
    tokens: "array[int]"
    start: int
    conversation: int
    """The lower, the longer it has been here: the id of its first node, behind the system prompt;
    SHARED before that; less than SHARED once it was promoted."""
    children: "dict[int, Node]" = field(default_factory=dict)
    """By the first id of each."""
    span_id: int | None = None
    rows: set[int] = field(default_factory=set)
    """Requests whose rows hold these positions; then there is no span."""
    window_id: int | None = None
    """The checkpoint at its end."""
    kind: Kind = Kind.GRID
    path_kind: Kind = Kind.GRID
    """How the sequence ended that last went through here."""
    uses: int = 0
    used_s: float = 0.0
    wanted: int = 0
    """Waiting requests that will begin exactly at its end."""
    file: File | None = None
    """Where its KV is on disk as well."""
    digest: "hashlib._Hash | None" = None
    """Of all ids from the root to its end; made when first asked for."""
    failed_saves: int = 0
    stamp: int = 0
    """The evictor's: which of its entries for this node is the valid one."""

    @property
    def stop(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.tokens)

    @property
    def is_at_hand(self) -> bool:
        """Whether its KV is in memory."""
        return self.span_id is not None or bool(self.rows) or self.parent is None

    @property
    def has_file_window(self) -> bool:
        """Whether its checkpoint is on disk."""
        return self.file is not None and self.file.window_tokens > 0 and self.file.stop == self.stop

    @property
    def is_continued(self) -> bool:
        """Whether KV behind it is in memory."""
        return any(child.is_at_hand for child in self.children.values())

    @property
    def is_of_use(self) -> bool:
        """Whether somebody can go on from its end or from further on, or is about to."""
        if self.window_id is not None or self.rows:
            return True
        if not self.is_at_hand and self.file is None:
            return False
        return bool(self.children) or self.has_file_window

    def path(self) -> "list[Node]":
        """From the root's child down to this node; empty for a root."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


def ids_of(tokens: Sequence[int]) -> "array[int]":
    """Compact and quick to compare."""
    return tokens if isinstance(tokens, array) else array("i", tokens)


def shared_tokens(left: "array[int]", right: "array[int]") -> int:
    """How many ids both begin with; by bisection, since whole slices compare at memory speed."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def walk(node: Node, tokens: "array[int]") -> Iterator[Node]:
    """The nodes below `node` that lie whole on the way that `tokens`, the ids behind it, take."""
    offset = 0
    while offset < len(tokens):
        child = node.children.get(tokens[offset])
        if child is None or tokens[offset : offset + len(child.tokens)] != child.tokens:
            return
        offset += len(child.tokens)
        node = child
        yield child


def split_above(node: Node, tokens: int, node_id: int) -> Node:
    """Put the first `tokens` ids of a node into a new one above it. The node keeps what belongs to
    its end; its span is the caller's business."""
    assert node.parent is not None
    assert 0 < tokens < len(node.tokens)
    ids = node.tokens[:tokens]
    upper = Node(node_id, node.salt, node.parent, ids, node.start, node.conversation)
    upper.rows = set(node.rows)
    upper.path_kind = node.path_kind
    upper.uses = node.uses
    upper.used_s = node.used_s
    upper.file = node.file
    if upper.file is not None:
        upper.file.nodes.add(upper)
    node.parent.children[upper.tokens[0]] = upper
    upper.children[node.tokens[tokens]] = node
    node.parent = upper
    node.start += tokens
    node.tokens = node.tokens[tokens:]
    return upper


def below(node: Node) -> Iterator[Node]:
    """All descendants, each before those below it."""
    waiting = list(node.children.values())
    while waiting:
        child = waiting.pop()
        yield child
        waiting.extend(child.children.values())


def check_node(node: Node) -> None:
    """Assert what must hold of every node but a root; for randomised tests."""
    assert node.parent is not None
    assert node.tokens
    assert node.start == node.parent.stop
    assert node.salt == node.parent.salt
    assert node.parent.children[node.tokens[0]] is node
    assert node.rows <= node.parent.rows
    assert node.parent.is_at_hand or not node.is_at_hand
    assert node.is_at_hand or node.file is not None
    assert node.is_at_hand or node.window_id is None
    assert node.span_id is None or not node.rows, "one copy only"
    assert node.is_of_use
    assert all(child.tokens[0] == first for first, child in node.children.items())
    if node.file is not None:
        assert node in node.file.nodes
        assert node.file.start <= node.start
        assert node.stop <= node.file.stop
