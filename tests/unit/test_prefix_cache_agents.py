"""The prefix cache under agents in tool loops: how much of their prompts a small budget saves."""

from collections import OrderedDict
from dataclasses import dataclass, field
from random import Random

import pytest

from tests.prefix_device import PLACE
from verger.engine.prefix_cache import Kind, PrefixCache
from verger.engine.steps import KVGeometry
from verger.messages import Submit

GPT_OSS_20B = KVGeometry(token_bytes=24_576, sliding_token_bytes=24_576, window=128, max_rows=16)
AGENTS = 8
STEPS = 10
SYSTEM_TOKENS = 1000
TASK_TOKENS = 5000
GRID_TOKENS = 512
UNLIMITED_BYTES = 1 << 50


def recompute_s(start: int, stop: int) -> float:
    """An M4 Pro: 700 tokens a second, slower further on."""
    return (stop - start) / 700 + (stop * stop - start * start) * 1e-8


@dataclass(slots=True)
class Office:
    """Agents in turn, one request at a time, with one budget for cache and row."""

    budget_bytes: float
    shares_system: bool = False
    random: Random = field(default_factory=lambda: Random(5))
    asked_tokens: int = 0
    cached_tokens: int = 0
    now_s: float = 0.0
    requests: int = 0
    system_misses: int = 0
    tokens: int = 0

    def ids(self, tokens: int) -> list[int]:
        return [self.random.randrange(200_000) for _ in range(tokens)]

    def run(self) -> PrefixCache:
        cache = PrefixCache(GPT_OSS_20B, recompute_s, lambda edit: None)
        system = self.ids(SYSTEM_TOKENS)
        own = [system if self.shares_system else self.ids(SYSTEM_TOKENS) for _ in range(AGENTS)]
        histories = [system + self.ids(TASK_TOKENS) for system in own]
        for step in range(STEPS):
            for history in histories:
                self.turn(cache, history, is_counted=step > 0)
        self.tokens = sum(map(len, histories))
        return cache

    def turn(self, cache: PrefixCache, prompt: list[int], is_counted: bool) -> None:
        """One step of an agent: the prompt, a tool call, and its result on the history."""
        self.requests += 1
        self.now_s += 10.0
        hit = cache.match("", prompt, len(prompt) - 1).tokens
        answer = self.ids(self.random.randint(20, 80))
        row_bytes = (len(prompt) + len(answer)) * GPT_OSS_20B.token_bytes
        moved = cache.moved_bytes("", prompt, hit)
        cache.want(self.requests, "", prompt)
        self.make_room(cache, row_bytes - moved)
        cache.unwant(self.requests)
        assert cache.match("", prompt, len(prompt) - 1).tokens == hit
        if is_counted:
            self.asked_tokens += len(prompt)
            self.cached_tokens += hit
            self.system_misses += hit < SYSTEM_TOKENS
        cache.open(Submit(self.requests, prompt, 100, []), PLACE, hit, self.now_s)
        grid = range(GRID_TOKENS, len(prompt), GRID_TOKENS)
        for at in sorted({*grid, SYSTEM_TOKENS, len(prompt) - 1}):
            if at > hit:
                self.extend(cache, prompt, at)
        prompt += answer
        cache.close(self.requests, prompt, Kind.OPEN, self.now_s)
        self.make_room(cache, 0)
        prompt += self.ids(self.random.randint(50, 200))

    def extend(self, cache: PrefixCache, prompt: list[int], at: int) -> None:
        kinds = {SYSTEM_TOKENS: Kind.SYSTEM, len(prompt) - 1: Kind.PROMPT}
        needed = cache.needs_window(self.requests, prompt, at)
        window_id = cache.new_window_id() if needed else None
        cache.extend(self.requests, prompt, at, window_id, kinds.get(at, Kind.GRID), self.now_s)

    def make_room(self, cache: PrefixCache, nbytes: int) -> None:
        cache.evict(int(cache.bytes + nbytes - self.budget_bytes), self.now_s)

    @property
    def hit_ratio(self) -> float:
        return self.cached_tokens / self.asked_tokens


def working_set_bytes(shares_system: bool) -> float:
    """Every conversation once, at its longest, with the one window that its next step needs."""
    office = Office(UNLIMITED_BYTES, shares_system)
    office.run()
    assert office.hit_ratio > 0.95
    tokens = office.tokens - (AGENTS - 1) * SYSTEM_TOKENS * shares_system
    return tokens * GPT_OSS_20B.token_bytes + AGENTS * GPT_OSS_20B.window_bytes(TASK_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least"), [(0.5, 0.37), (0.75, 0.65), (1 / 1.15, 0.8)])
@pytest.mark.parametrize("shares_system", [False, True])
def test_agents_in_turn_find_most_of_what_fits(
    share: float, least: float, shares_system: bool
) -> None:
    office = Office(working_set_bytes(shares_system) * share, shares_system)
    office.run()
    assert office.hit_ratio >= least


def lru_hit_ratio(share: float) -> float:
    """The same agents with whole conversations in least-recently-used order, which evicts from
    the end of the oldest."""
    sizes = [SYSTEM_TOKENS + TASK_TOKENS] * AGENTS
    budget = sum(sizes) * share
    held: OrderedDict[int, int] = OrderedDict()
    asked = cached = 0
    for turn in range(AGENTS * STEPS):
        agent = turn % AGENTS
        if turn >= AGENTS:
            asked += sizes[agent]
            cached += held.get(agent, 0)
        held[agent] = sizes[agent]
        held.move_to_end(agent)
        while (over := sum(held.values()) - budget) > 0:
            oldest = next(iter(held))
            held[oldest] -= int(min(held[oldest], over + 1))
            if held[oldest] == 0:
                del held[oldest]
    return cached / asked


def test_least_recently_used_would_find_nothing() -> None:
    """What the tests above are up against."""
    assert lru_hit_ratio(1.0) == 1.0
    assert lru_hit_ratio(1 / 1.15) < 0.02


@pytest.mark.slow
def test_the_shared_system_prompt_goes_last() -> None:
    office = Office(working_set_bytes(True) * 0.2, shares_system=True)
    office.run()
    assert office.system_misses == 0
