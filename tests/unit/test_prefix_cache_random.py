"""Random operations on the prefix cache against a dictionary of checkpoints and a device double."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.prefix_device import GEOMETRY, PLACE, Prefix, PrefixDevice
from verger.engine.prefix_cache import Kind, PrefixCache
from verger.messages import Submit

OPERATIONS = 100
SALTS = ("red", "blue")


def recompute_s(start: int, stop: int) -> float:
    return 0.01 + (stop - start) * 0.1 + (stop * stop - start * start) * 0.001


@dataclass(slots=True)
class Request:
    """A request with a row: how much of its prompt the index knows, and its forks to come."""

    submit: Submit
    known_tokens: int
    forks: list[int] = field(default_factory=list)


class Play:
    """The cache, the device and the naive model: a set of prefixes that have a checkpoint."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.device = PrefixDevice()
        self.min_tokens = self.random.choice([1, 3])
        self.cache = self.new_cache()
        self.checkpoints: set[Prefix] = set()
        self.requests: dict[int, Request] = {}
        self.seen: list[list[int]] = [[]]
        self.now_s = 0.0
        self.request_ids = 0
        self.alphabet = self.random.choice([1, 2, 3])

    def new_cache(self) -> PrefixCache:
        return PrefixCache(GEOMETRY, recompute_s, self.device.apply, self.min_tokens)

    def operations(self) -> dict[Callable[[], None], int]:
        """Each with its weight."""
        rows = {self.start: 4, self.prefill: 8, self.decode: 4, self.fork: 1, self.close: 3}
        return {**rows, self.evict: 1, self.want: 1, self.unwant: 1}

    def operate(self) -> None:
        self.now_s += self.random.choice([0.0, 1.0, 2000.0])
        operations = self.operations()
        self.random.choices(list(operations), list(operations.values()))[0]()
        self.check()

    def check(self) -> None:
        self.cache.check_integrity()
        assert self.cache.bytes == self.device.held_bytes
        assert set(self.device.windows.values()) == self.checkpoints
        assert len(self.device.windows) == len(self.checkpoints)
        self.device.check_single_copies()

    def prompt(self) -> list[int]:
        rng = self.random
        known = rng.choice(self.seen)
        known = known[: rng.choice([len(known), rng.randint(0, len(known))])]
        return known + [rng.randrange(self.alphabet) for _ in range(rng.randint(1, 6))]

    def longest(self, salt: str, prompt: list[int], limit: int) -> int:
        stops = range(min(limit, len(prompt)), 0, -1)
        known = (n for n in stops if Prefix(salt, tuple(prompt[:n])) in self.checkpoints)
        return next(known, 0)

    def start(self) -> None:
        rng = self.random
        prompt, salt = self.prompt(), rng.choice(SALTS)
        if len(self.requests) == GEOMETRY.max_rows:
            return
        limit = rng.choice([len(prompt) - 1, rng.randint(0, len(prompt))])
        hit = self.cache.match(salt, prompt, limit)
        assert hit.tokens == self.longest(salt, prompt, limit)
        tokens = rng.choice([hit.tokens, hit.tokens, hit.tokens, 0])
        before = self.cache.bytes
        moved = self.cache.moved_bytes(salt, prompt, tokens)
        self.open(Submit(self.new_id(), prompt, 1, [], cache_salt=salt), tokens)
        assert before - self.cache.bytes == moved

    def open(self, submit: Submit, tokens: int) -> None:
        self.cache.open(submit, PLACE, tokens, self.now_s)
        assert len(self.device.rows[submit.request_id].ids) == tokens
        self.requests[submit.request_id] = Request(submit, tokens)

    def new_id(self) -> int:
        self.request_ids += 1
        return self.request_ids

    def prefilling(self) -> Request | None:
        rows = [
            request
            for request_id, request in self.requests.items()
            if len(self.device.rows[request_id].ids) < len(request.submit.prompt)
        ]
        return self.random.choice(rows) if rows else None

    def prefill(self) -> None:
        """A chunk with cuts; what was computed may go beyond what the index is told."""
        request, rng = self.prefilling(), self.random
        if request is None:
            return
        request_id, prompt = request.submit.request_id, request.submit.prompt
        start = len(self.device.rows[request_id].ids)
        stop = rng.randint(start + 1, len(prompt))
        self.device.compute(request_id, prompt[start:stop])
        for at in sorted(
            rng.sample(range(start + 1, stop + 1), rng.randint(0, min(3, stop - start)))
        ):
            self.extend(request, at)

    def extend(self, request: Request, at: int) -> None:
        request_id, prompt = request.submit.request_id, request.submit.prompt
        prefix = self.device.rows[request_id].prefix(at)
        needed = self.cache.needs_window(request_id, prompt, at)
        assert needed == (prefix not in self.checkpoints and at >= self.min_tokens)
        window_id = None
        if needed or self.random.random() < 0.2:
            window_id = self.cache.new_window_id()
            self.device.cut(request_id, window_id, at)
            self.checkpoints.add(prefix)
        kind = self.random.choice(list(Kind))
        self.cache.extend(request_id, prompt, at, window_id, kind, self.now_s)
        request.known_tokens = at

    def decode(self) -> None:
        rows = [i for i, r in self.requests.items() if self.is_prefilled(i, r)]
        if rows:
            self.device.compute(self.random.choice(rows), [self.random.randrange(self.alphabet)])

    def is_prefilled(self, request_id: int, request: Request) -> bool:
        return len(self.device.rows[request_id].ids) >= len(request.submit.prompt)

    def fork(self) -> None:
        """The fork opens empty; later, but before it knows of anything, it gets the copy."""
        rows = [i for i, r in self.requests.items() if not self.is_prefilled(i, r)]
        if not rows or len(self.requests) == GEOMETRY.max_rows:
            return
        source = self.requests[self.random.choice(rows)]
        submit = source.submit
        fork = Submit(self.new_id(), submit.prompt, 1, [], cache_salt=submit.cache_salt)
        self.open(fork, 0)
        self.check()
        self.device.fork(fork.request_id, submit.request_id)
        self.cache.fork(fork.request_id, submit.request_id)
        self.requests[fork.request_id].known_tokens = source.known_tokens

    def close(self) -> None:
        if not self.requests:
            return
        request_id = self.random.choice(list(self.requests))
        request = self.requests.pop(request_id)
        row = self.device.rows[request_id]
        ids = row.ids[: len(row.ids) - self.random.choice([0, 0, 1])]
        if len(ids) < request.known_tokens or self.random.random() < 0.1:
            ids = []
        self.seen.append(ids)
        kind = self.random.choice([Kind.END, Kind.OPEN, Kind.GRID])
        self.cache.close(request_id, ids, kind, self.now_s)
        if len(ids) >= self.min_tokens:
            self.checkpoints.add(Prefix(row.salt, tuple(ids)))

    def evict(self) -> None:
        nbytes = min(self.random.randint(0, self.cache.bytes + 30) for _ in range(2))
        before, available = self.cache.bytes, self.device.held_bytes
        price_s = self.cache.price(nbytes, self.now_s)
        assert self.cache.bytes == before
        self.device.freed_windows.clear()
        freed = self.cache.evict(nbytes, self.now_s)
        assert freed == before - self.cache.bytes
        assert (price_s == float("inf")) == (nbytes > available)
        assert freed >= min(nbytes, available)
        self.checkpoints -= set(self.device.freed_windows)

    def want(self) -> None:
        self.cache.want(self.random.randint(1000, 1003), self.random.choice(SALTS), self.prompt())

    def unwant(self) -> None:
        self.cache.unwant(self.random.randint(1000, 1003))

    def run_out(self) -> None:
        while self.requests:
            self.close()
            self.check()
        self.device.freed_windows.clear()
        self.cache.evict(self.cache.bytes, self.now_s)
        self.checkpoints.clear()
        self.check()


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(0, 320, 20))
def test_every_hit_restores_exactly_the_prompts_ids(first_seed: int) -> None:
    """Also: no checkpoint is lost but by eviction, bytes are exact, and all can be evicted."""
    hits = 0
    for seed in range(first_seed, first_seed + 20):
        play = Play(seed)
        for _ in range(OPERATIONS):
            play.operate()
        play.run_out()
        hits += sum(1 for edit in play.device.opened if edit.sources)
        assert not play.device.spans
        assert not play.device.windows
        assert play.cache.nodes == play.cache.bytes == 0
    assert hits > 20
