"""What of the prefix cache to give up first: the least expected loss of seconds per byte.

The prefix cache tells it which nodes have a checkpoint and which of them changed; it answers with
victims and frees nothing itself. Must not know edits, spans or requests.

What a checkpoint is worth is the chance that somebody goes on from there, times the time to compute
again what lies between the checkpoint before it and this one. Recency alone would be worse than
nothing: with eight agents in turn, the least recently used one is the next to come. So among the
equally likely the choice is stable: the newest conversation goes, the others stay whole.

    root ── S ── a ── b ── c        S, a, c: checkpoints, all stored
                                    victims: c with b (a is the last that stays of use),
                                             or the window alone of a, or of S
"""

import heapq
import itertools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from verger.engine.prefix_node import Kind, Node
from verger.engine.steps import KVGeometry

RecomputeS = Callable[[int, int], float]
"""Seconds that prefilling positions start:stop of one row takes."""
ReloadS = Callable[[int, int], float]
"""Seconds that reading back so many bytes takes, of which so many have to be written first; inf
where that cannot be done."""

SHARED_PROBABILITY = 0.95
"""Of system and tools, and of what more than one sequence continues."""
END_PROBABILITY = {
    Kind.GRID: 0.1,
    Kind.PROMPT: 0.3,
    Kind.END: 0.3,
    Kind.TURN: 0.5,
    Kind.OPEN: 0.9,
    Kind.SYSTEM: SHARED_PROBABILITY,
}
"""That somebody goes on where nothing follows yet."""
SUPERSEDED_PROBABILITY = 0.02
"""That somebody goes back to a checkpoint behind which a sequence went on."""
YOUNG_S = 600.0
"""Up to this age a checkpoint is as likely to be used as at first; each doubling halves it."""
RATE_BUCKET = 4.0
"""Ends whose seconds per byte are nearer to each other than this factor count as equal."""
RETURN_S = 15.0
"""Within this time after a tool call its result is expected."""
REBUILD_S = 5.0
"""How old an order may get, since likelihoods fall with time."""
STALE_ENTRIES = 1024
"""Entries beyond twice the number of checkpoints before all are made anew."""


@dataclass(slots=True)
class Victim:
    """What would be freed: the window of `node`, and the KV of `chain`."""

    node: Node
    chain: list[Node]
    """Its node and those above it that are of no use without it; empty: the window alone."""
    nbytes: int
    unsaved_bytes: int
    """Of `nbytes`, what is not on disk."""
    likely: float
    """That somebody goes on from here."""
    recompute_s: float
    density: float
    """Seconds expected to be lost per byte."""
    is_expected: bool
    """Whether somebody waits for it, or will soon come back to it."""


@dataclass(slots=True)
class _Gone:
    """What the victims chosen so far would have freed."""

    nodes: set[Node] = field(default_factory=set)
    windows: set[Node] = field(default_factory=set)


class _Entry(NamedTuple):
    """In the order in which victims are taken."""

    density: float
    newest_conversation: int
    rank: int
    number: int
    stamp: int
    node: Node


def probability(node: Node, is_end: bool, now_s: float) -> float:
    """That somebody will go on from this checkpoint."""
    if node.wanted:
        likely = 1.0
    elif node.kind is Kind.SYSTEM or len(node.children) > 1:
        likely = SHARED_PROBABILITY
    elif is_end:
        likely = max(END_PROBABILITY[node.kind], END_PROBABILITY[node.path_kind])
    elif node.kind is Kind.TURN:
        likely = END_PROBABILITY[Kind.TURN]
    else:
        likely = SUPERSEDED_PROBABILITY
    age_s = 0.0 if node.wanted else now_s - node.used_s
    if age_s < 2 * YOUNG_S:
        return likely
    return float(likely * 0.5 ** math.floor(math.log2(age_s / YOUNG_S)))


def never_reloaded(nbytes: int, unsaved_bytes: int) -> float:
    """Where there is no disk."""
    return math.inf


class Evictor:
    """Keeps the nodes that may go first, those with a window and those with nothing in memory
    behind them, in order of density. An entry may be too low, since what is worth more meanwhile is
    put back when its turn comes; it must not be too high, hence `touch`."""

    def __init__(self, geometry: KVGeometry, recompute_s: RecomputeS, reload_s: ReloadS) -> None:
        self._geometry = geometry
        self._recompute_s = recompute_s
        self._reload_s = reload_s
        self._candidates: set[Node] = set()
        self._changed: set[Node] = set()
        self._heap: list[_Entry] = []
        self._built_s = -math.inf
        self._stamps = itertools.count(1)
        self._numbers = itertools.count()

    @property
    def entries(self) -> int:
        """In the order, valid or not."""
        return len(self._heap)

    def add(self, node: Node) -> None:
        """The node has got a window, or a span read from disk."""
        self._candidates.add(node)
        self._changed.add(node)

    def remove(self, node: Node) -> None:
        """The node has lost them."""
        self._candidates.discard(node)
        self._changed.discard(node)
        node.stamp = 0

    def touch(self, node: Node | None) -> None:
        """The node's likelihood, or what follows it, has changed."""
        if node in self._candidates:
            self._changed.add(node)

    def victims(self, nbytes: int, now_s: float, spared: Collection[Node] = ()) -> list[Victim]:
        """The first to go, in this order, for so many bytes or as many as there are."""
        self._refresh(now_s)
        gone = _Gone()
        victims: list[Victim] = []
        missing = nbytes
        while missing > 0 and self._heap:
            entry = heapq.heappop(self._heap)
            if entry.stamp != entry.node.stamp:
                continue
            # Nothing is freed here, so whatever is taken out must come back.
            self._changed.add(entry.node)
            if entry.node in spared:
                continue
            victim = self._victim(entry.node, gone, now_s)
            if victim is None:
                continue
            if victim.density > entry.density:
                self._push(victim)
                continue
            victims.append(victim)
            missing -= victim.nbytes
            self._take(victim, gone, now_s)
        return victims

    def loss_s(self, victims: list[Victim]) -> float:
        """Seconds expected to be lost if all of these go."""
        nbytes = sum(victim.nbytes for victim in victims)
        unsaved_bytes = sum(victim.unsaved_bytes for victim in victims)
        computed_s = sum(victim.likely * victim.recompute_s for victim in victims)
        return min(computed_s, self._reload_s(nbytes, unsaved_bytes))

    def check_integrity(self, nodes: list[Node]) -> None:
        """Assert that all that can go is known, each with a valid entry."""
        ends = {n for n in nodes if n.span_id is not None and not n.is_continued}
        windows = {n for n in nodes if n.window_id is not None}
        assert ends | windows <= self._candidates <= set(nodes)
        assert self._changed <= self._candidates
        entries = {entry.node for entry in self._heap if entry.stamp == entry.node.stamp}
        assert (ends | windows) - self._changed <= entries

    def _take(self, victim: Victim, gone: _Gone, now_s: float) -> None:
        """Go on as if the victim were gone: what is above it may be an end now."""
        gone.windows.add(victim.node)
        gone.nodes.update(victim.chain)
        above = victim.chain[-1].parent if victim.chain else None
        if above in self._candidates:
            assert above is not None
            self._changed.add(above)
            freed = self._victim(above, gone, now_s)
            if freed is not None:
                self._push(freed)

    def _refresh(self, now_s: float) -> None:
        is_old = now_s - self._built_s > REBUILD_S
        if is_old or len(self._heap) > 2 * len(self._candidates) + STALE_ENTRIES:
            self._heap.clear()
            self._changed = set(self._candidates)
            self._built_s = now_s
        for node in self._changed:
            node.stamp = next(self._stamps)
            victim = self._victim(node, _Gone(), now_s)
            if victim is not None:
                self._push(victim)
        self._changed.clear()

    def _push(self, victim: Victim) -> None:
        node = victim.node
        # Of ends the newest; of windows the first, since that makes the next one worth more.
        rank = -node.node_id if victim.chain else node.start
        number = next(self._numbers)
        entry = _Entry(victim.density, -node.conversation, rank, number, node.stamp, node)
        heapq.heappush(self._heap, entry)

    def _victim(self, node: Node, gone: _Gone, now_s: float) -> Victim | None:
        if node in gone.windows:
            return None
        chain = _chain(node, gone)
        has_window = node.window_id is not None
        if not chain and not has_window:
            return None
        window_bytes = self._geometry.window_bytes(node.stop) if has_window else 0
        nbytes = window_bytes + self._span_bytes(chain)
        unsaved_bytes = self._span_bytes([link for link in chain if link.file is None])
        unsaved_bytes += 0 if node.has_file_window else window_bytes
        recompute_s = self._recompute_s(_checkpoint_before(node, gone), node.stop)
        likely = probability(node, bool(chain), now_s)
        # What is on disk already costs no write, so it goes first.
        reload_s = math.inf if unsaved_bytes else self._reload_s(nbytes, 0)
        rate = min(recompute_s, reload_s) / nbytes
        if chain and rate > 0:
            rate = RATE_BUCKET ** round(math.log(rate, RATE_BUCKET))
        return Victim(
            node=node,
            chain=chain,
            nbytes=nbytes,
            unsaved_bytes=unsaved_bytes,
            likely=likely,
            recompute_s=recompute_s,
            density=likely * rate,
            is_expected=bool(chain) and _is_expected(node, now_s),
        )

    def _span_bytes(self, nodes: list[Node]) -> int:
        return sum(len(node.tokens) for node in nodes) * self._geometry.token_bytes


def _is_expected(node: Node, now_s: float) -> bool:
    is_open = Kind.OPEN in (node.kind, node.path_kind)
    return node.wanted > 0 or (is_open and now_s - node.used_s < RETURN_S)


def _chain(node: Node, gone: _Gone) -> list[Node]:
    """The spans that go if this end goes; none if it is no end or rows hold it."""
    chain: list[Node] = []
    link = node
    while link.span_id is not None and not _continues(link, chain, gone):
        chain.append(link)
        assert link.parent is not None
        link = link.parent
        if link.window_id is not None and link not in gone.windows:
            break
    return chain


def _continues(node: Node, chain: list[Node], gone: _Gone) -> bool:
    """Whether some KV is at hand behind a node, other than what goes."""
    return any(
        child.is_at_hand and child not in gone.nodes and (not chain or child is not chain[-1])
        for child in node.children.values()
    )


def _checkpoint_before(node: Node, gone: _Gone) -> int:
    """Where computing would begin if this checkpoint were gone."""
    above = node.parent
    while above is not None:
        if above.window_id is not None and above not in gone.windows:
            return above.stop
        above = above.parent
    return 0
