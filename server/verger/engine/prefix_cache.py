"""Which prefixes have been computed, and where their KV is: a radix index over token ids.

Owned by the KV budget, called between steps. Pure: it knows ids, offsets and bytes, never arrays;
whatever must happen on the device it emits as edits (`steps.py`), in order.

There is one copy of everything in memory: a node's KV is a span, or lies in the running rows that
cover it. A hit moves spans into the row; closing a row gives back what is worth keeping. A window
is always apart. A node without a checkpoint in it or below it is of no use to anybody and does not
stay. Which part is on disk too is kept in `prefix_files.py`.

    extend ─► covered by rows ── close, the last row ─► stored ── evict ─► on disk only, or gone
                    ▲───────────────── open ──────────────┘ ▲──── read ─────────┘
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verger.engine.eviction import Evictor, RecomputeS, ReloadS, Victim, never_reloaded
from verger.engine.prefix_files import PrefixFiles, SaveOrder, names_of
from verger.engine.prefix_node import Kind, Node, below, ids_of, walk
from verger.engine.prefix_tree import PrefixTree
from verger.engine.steps import (
    Close,
    Cut,
    Edit,
    FreeWindow,
    Kept,
    KVGeometry,
    Open,
    Place,
    Running,
    Stored,
)
from verger.messages import Submit

__all__ = ["MIN_CACHED_TOKENS", "Hit", "Kind", "PrefixCache", "RecomputeS", "SaveOrder"]

MIN_CACHED_TOKENS = 32
"""No checkpoint is made before this position: its window would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What is known of a prompt. `tokens` positions can be restored at once; `file_tokens` ≥
    `tokens` if `files` were read back first, in this order."""

    tokens: int
    file_tokens: int = 0
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Taker:
    """Who wants memory: a tenant's prompt, of which so many positions are cached."""

    salt: str
    prompt: Sequence[int]
    tokens: int
    is_background: bool


@dataclass(slots=True)
class _Row:
    """An open row; `tip` is the last node that it covers, a root if there is none."""

    tip: Node
    is_promoted: bool
    """Whether its conversation counts as older than all others from now on."""


class PrefixCache:
    """The index; see the module docstring for its rules."""

    def __init__(
        self,
        geometry: KVGeometry,
        recompute_s: RecomputeS,
        emit: Callable[[Edit], None],
        min_cached_tokens: int = MIN_CACHED_TOKENS,
        fingerprint: str = "",
        save: Callable[[SaveOrder], bool] | None = None,
        reload_s: ReloadS = never_reloaded,
    ) -> None:
        """`save`, if there is a disk, is asked to write what is about to be freed; the order stands
        before the edits that are emitted after it. False: it will not be written."""
        assert min_cached_tokens > 0
        self.evictions = 0
        self.reader: Taker | None = None
        """Whose prefix is being read back: nobody takes what is there of it."""
        self._emit = emit
        self._save = save
        self._min_cached_tokens = min_cached_tokens
        self._evictor = Evictor(geometry, recompute_s, reload_s)
        self._tree = PrefixTree(geometry, self._evictor, emit)
        self._rows: dict[int, _Row] = {}
        self.files = PrefixFiles(self._tree, fingerprint)

    # -- accounting
    @property
    def bytes(self) -> int:
        """Of stored spans and of windows. What rows hold is not counted here."""
        return self._tree.held_bytes

    @property
    def nodes(self) -> int:
        """All of them, also those covered by rows or on disk only."""
        return self._tree.nodes

    def new_window_id(self) -> int:
        """An id for a window that a plan cuts; `extend` gives it its place."""
        return self._tree.new_window_id()

    # -- looking up (changes nothing)
    def match(self, salt: str, prompt: Sequence[int], limit: int) -> Hit:
        """The deepest checkpoint of `prompt` at or before `limit` whose whole path is at hand."""
        path = self._tree.path(salt, prompt, limit)
        tokens = max((node.stop for node in path if node.window_id is not None), default=0)
        readable = self.files.readable(path)
        if not readable or readable[-1].stop <= tokens:
            return Hit(tokens, tokens)
        return Hit(tokens, readable[-1].stop, names_of(readable))

    def moved_bytes(self, salt: str, prompt: Sequence[int], tokens: int) -> int:
        """Stored bytes that `open` at that checkpoint would free, since the row will hold them."""
        path = self._tree.path(salt, prompt, tokens)
        return sum(self._tree.span_bytes(node) for node in path if node.span_id is not None)

    # -- requests that wait for a row: what they will use is certain to be used
    def want(self, request_id: int, salt: str, prompt: Sequence[int]) -> None:
        """Keep, as long as anything else can go, what this prompt will begin with."""
        self.unwant(request_id)
        path = self._tree.path(salt, prompt, len(prompt) - 1)
        ends = [node for node in path if node.window_id is not None][-1:]
        self._tree.want(request_id, ends + self.files.readable(path)[-1:])

    def unwant(self, request_id: int) -> None:
        """The request has a row, or is gone; unknown ones are no error."""
        self._tree.unwant(request_id)

    # -- rows
    def open(
        self, submit: Submit, place: Place, tokens: int, now_s: float, *, is_promoted: bool = False
    ) -> None:
        """Emit the row's Open, beginning with `tokens` positions (0, or what `match` said)."""
        request_id = submit.request_id
        assert request_id not in self._rows
        root = self._tree.root(submit.cache_salt)
        path = list(walk(root, ids_of(submit.prompt[:tokens])))
        tip = path[-1] if path else root
        assert tip.stop == tokens
        assert tip.window_id is not None or tip is root
        self._emit(Open(submit, place, self._sources(path), tip.window_id))
        root.rows.add(request_id)
        self._rows[request_id] = _Row(tip, is_promoted)
        for node in path:
            if node.stop in submit.boundaries[:1]:
                # Known from a file, it did not say what it is.
                node.kind = Kind.SYSTEM
                self._tree.share(node)
            self._tree.unstore(node)
            node.rows.add(request_id)
            node.uses += 1
            node.used_s = now_s
            self._evictor.touch(node)

    def needs_window(self, request_id: int, prompt: Sequence[int], at: int) -> bool:
        """Whether a checkpoint at that position of the row's prompt is worth having and is not
        there yet."""
        tip = self._rows[request_id].tip
        if at < max(self._min_cached_tokens, tip.stop):
            return False
        for node in walk(tip, ids_of(prompt[tip.stop : at])):
            tip = node
        return tip.stop != at or tip.window_id is None

    def extend(
        self,
        request_id: int,
        prompt: Sequence[int],
        at: int,
        window_id: int | None,
        kind: Kind,
        now_s: float,
    ) -> None:
        """The row has computed (or a launched plan will have) its prompt up to `at`, and a window
        was cut there under `window_id`. None: the checkpoint is there, only cover the path."""
        row = self._rows[request_id]
        assert at >= row.tip.stop
        for node in self._tree.spell(row.tip, ids_of(prompt[row.tip.stop : at]), now_s):
            self._tree.free_span(node)
            node.rows.add(request_id)
            node.used_s = now_s
            self._evictor.touch(node)
            row.tip = node
        if row.tip.parent is None:
            return
        row.tip.kind = max(row.tip.kind, kind)
        if kind is Kind.TURN:
            self._supersede_turns(row.tip)
        if kind is Kind.SYSTEM:
            self._tree.share(row.tip)
        self._evictor.touch(row.tip)
        if window_id is not None and row.tip.window_id is None:
            self._tree.add_window(row.tip, window_id)
        elif window_id is not None:
            self._emit(FreeWindow(window_id))

    def fork(self, request_id: int, source_id: int) -> None:
        """A fork's row, opened empty, now holds all that the leader's row holds."""
        row = self._rows[request_id]
        assert row.tip.parent is None
        row.tip = self._rows[source_id].tip
        for node in row.tip.path():
            node.rows.add(request_id)

    def close(self, request_id: int, tokens: Sequence[int], kind: Kind, now_s: float) -> None:
        """Emit the row's Close. `tokens` are the ids of all positions that it has computed and
        that are worth keeping (empty: keep nothing new)."""
        row = self._rows.pop(request_id)
        tip, cut = row.tip, None
        if len(tokens) >= max(tip.stop, self._min_cached_tokens):
            for node in self._tree.spell(tip, ids_of(tokens[tip.stop :]), now_s):
                tip = node
            tip.kind = max(tip.kind, kind)
            if tip.window_id is None:
                cut = Cut(self.new_window_id(), tip.stop)
                self._tree.add_window(tip, cut.window_id)
        path = tip.path()
        self._end_path(path, kind, now_s)
        if row.is_promoted:
            self._tree.promote(path)
        kept = [kept for node in reversed(path) if (kept := self._leave(node, request_id))]
        kept.reverse()
        self._emit(Close(request_id, tuple(kept), cut))
        root = self._tree.roots[tip.salt]
        root.rows.discard(request_id)
        self._tree.prune(root)

    # -- eviction
    def price(self, nbytes: int, now_s: float, taker: Taker | None = None) -> float:
        """Expected seconds of recomputation that freeing so many bytes would soon cost others (inf:
        there is not so much). Conversations that are newer than the taker's do not count."""
        victims = self._evictor.victims(nbytes, now_s, self._spared(taker))
        if sum(victim.nbytes for victim in victims) < nbytes:
            return math.inf
        age = self._age(taker)
        lost = [v for v in victims if v.is_expected and v.node.conversation < age]
        return self._evictor.loss_s(lost)

    def _age(self, taker: Taker | None) -> float:
        if taker is None or taker.is_background:
            return math.inf
        return self._tree.conversation_of(taker.salt, taker.prompt)

    def evict(self, nbytes: int, now_s: float, taker: Taker | None = None) -> int:
        """Free at least so many bytes if there are as many; what was freed."""
        tree = self._tree
        before = tree.held_bytes
        for victim in self._evictor.victims(nbytes, now_s, self._spared(taker)):
            self.evictions += 1
            self._save_first(victim)
            tree.free_window(victim.node)
            for node in victim.chain:
                tree.free_span(node)
                self._evictor.remove(node)
            # From above: where one is of no use, those below it have gone with it.
            useless = [node for node in victim.chain if not node.is_of_use]
            if useless:
                tree.prune(useless[-1])
        return before - tree.held_bytes

    def _spared(self, taker: Taker | None) -> list[Node]:
        """Nobody gives up what he is about to take over himself, nor what somebody else reads."""
        takers = [one for one in (taker, self.reader) if one is not None]
        paths = (self._tree.path(one.salt, one.prompt, one.tokens) for one in takers)
        return [node for path in paths for node in path]

    def _save_first(self, victim: Victim) -> None:
        """Have it written, with what is above it and not on disk yet, if it may well be needed."""
        end = victim.node
        is_likely = max(end.kind, end.path_kind) >= Kind.TURN or end.uses > 0
        if self._save is None or not victim.chain or not is_likely:
            return
        for node in end.path():
            if node.file is not None:
                continue
            order = self.files.order(node)
            if not self._save(order):
                self.files.saved(order.header.name, ok=False)
                return

    def _supersede_turns(self, node: Node) -> None:
        """A conversation goes back to the start of its last turn only: to what came before that
        turn's reasoning."""
        for above in node.path()[:-1]:
            if above.kind is Kind.TURN:
                above.kind = Kind.GRID
                self._evictor.touch(above)

    # -- rows and spans
    def _sources(self, path: list[Node]) -> tuple[Stored | Running, ...]:
        """A row that covers a node covers all above it, so one row is the source of all that."""
        covered = next((node for node in reversed(path) if node.rows), None)
        sources: list[Stored | Running] = []
        if covered is not None:
            sources.append(Running(min(covered.rows), 0, covered.stop))
        for node in path[path.index(covered) + 1 if covered else 0 :]:
            assert node.span_id is not None
            sources.append(Stored(node.span_id, node.start, node.stop))
        return tuple(sources)

    def _end_path(self, path: list[Node], kind: Kind, now_s: float) -> None:
        """A sequence has ended so: its next turn, if one comes, goes the same way."""
        for node in path:
            is_shared = len(node.children) > 1
            node.path_kind = max(node.path_kind, kind) if is_shared else kind
            node.used_s = now_s
            self._evictor.touch(node)

    def _leave(self, node: Node, request_id: int) -> Kept | None:
        """A closing row leaves a node, those below it first: what becomes of its KV."""
        node.rows.discard(request_id)
        if node.is_at_hand:
            return None
        if node.window_id is None and not node.is_continued:
            self._tree.prune(node)
            return None
        return Kept(self._tree.store(node), node.start, node.stop)

    # -- for tests
    def check_integrity(self) -> None:
        """Assert what must hold between any two calls."""
        self._tree.check_integrity()
        self.files.check_integrity()
        covered: dict[Node, set[int]] = {}
        for request_id, row in self._rows.items():
            for node in [self._tree.roots[row.tip.salt], *row.tip.path()]:
                covered.setdefault(node, set()).add(request_id)
        for root in self._tree.roots.values():
            for node in [root, *below(root)]:
                assert node.rows == covered.get(node, set())
