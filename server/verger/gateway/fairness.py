"""What each key has used of the GPU: virtual token counters, in GPU-seconds.

Owned by `submit_queue.py`, where the key with the smallest counter goes first. After "Fairness in
Serving Large Language Models" (Sheng et al., arXiv 2401.00588), with measured seconds instead of a
fixed price per token, and for prompt tokens that were not cached only. Pure; must not know rows,
frames or a clock, nor who waits for what.

    given to the engine ─► its first Progress ─► its tokens ─► its end
    charged for what       what was not cached   each is       what was not computed
    seems not cached       is known now          charged       is given back

A counter never goes back: what is given back is credit, used up by the charges that follow.
"""

from collections import Counter
from dataclasses import dataclass, field

from verger.messages import BACKGROUND, BATCH, INTERACTIVE

MAX_KEYS = 1024
"""Accounts kept; more than can ever wait and run at once."""
WEIGHTS = {INTERACTIVE: 1.0, BATCH: 4.0, BACKGROUND: 1.0}
"""A second is divided by the weight of its class: batch work only gets what is left over, so it
counts a quarter. The background computes what the next interactive request would have to."""


@dataclass(frozen=True, slots=True)
class Prices:
    """GPU-seconds of a token; a typical machine's until they are measured."""

    prompt_s: float = 0.001
    """In large chunks."""
    output_s: float = 0.01
    """Of a step of the present batch, each row's part."""


@dataclass(slots=True)
class Work:
    """What a request was charged for; the choices of an answer share it, as they do the prompt."""

    key_id: str
    priority: int
    prompt_tokens: int
    charged_tokens: int = 0
    computed_tokens: int = 0


@dataclass(slots=True)
class _Account:
    counter_s: float = 0.0
    credit_s: float = 0.0
    active: Counter[int] = field(default_factory=Counter)
    """Class → requests that wait or run."""

    @property
    def is_active(self) -> bool:
        return self.active.total() > 0


class FairCounters:
    """The accounts of all keys."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self.prices = Prices()
        self._max_keys = max_keys
        self._accounts: dict[str, _Account] = {}
        self._floors_s = dict.fromkeys(WEIGHTS, 0.0)
        """Class → the counter of whoever was the last one active in it."""

    def __len__(self) -> int:
        return len(self._accounts)

    def counter_s(self, key_id: str) -> float:
        """What orders the keys; 0 for one that was never seen."""
        account = self._accounts.get(key_id)
        return account.counter_s if account else 0.0

    def lifted_s(self, key_id: str, priority: int) -> float:
        """The counter of a key if another request of it came now."""
        account = self._accounts.get(key_id)
        if account and account.active[priority]:
            return account.counter_s
        return max(self.counter_s(key_id), self._level_s(priority))

    def enter(self, key_id: str, priority: int) -> None:
        """A request comes. If its key had nothing to do in this class it is lifted to those that
        had: what it did not use is lost."""
        account = self._account(key_id)
        account.counter_s = self.lifted_s(key_id, priority)
        account.active[priority] += 1

    def leave(self, key_id: str, priority: int) -> None:
        """A request has ended, whether it ever ran or not."""
        account = self._accounts[key_id]
        account.active[priority] -= 1
        assert account.active[priority] >= 0
        if not any(other.active[priority] for other in self._accounts.values()):
            self._floors_s[priority] = max(self._floors_s[priority], account.counter_s)

    def begin(self, key_id: str, priority: int, prompt_tokens: int, cached_tokens: int) -> Work:
        """A request is given to the engine; so much of its prompt seems to be cached."""
        work = Work(key_id, priority, prompt_tokens)
        self._charge_prompt(work, prompt_tokens - cached_tokens)
        return work

    def note_prefilled(self, work: Work, prefilled_tokens: int, cached_tokens: int) -> None:
        """The engine has told how far it is, and how much really was cached."""
        self._charge_prompt(work, work.prompt_tokens - cached_tokens)
        work.computed_tokens = max(work.computed_tokens, prefilled_tokens - cached_tokens)

    def note_decoded(self, work: Work, tokens: int) -> None:
        """So many tokens were sampled; the prompt is computed, then."""
        work.computed_tokens = work.charged_tokens
        self._charge(work, tokens * self.prices.output_s)

    def end(self, work: Work) -> None:
        """Nothing more will be computed for it."""
        self._charge_prompt(work, work.computed_tokens)

    def cost_s(self, priority: int, prompt_tokens: int, output_tokens: int) -> float:
        """What a request will be charged for so many uncached and so many sampled tokens."""
        prices = self.prices
        gpu_s = prompt_tokens * prices.prompt_s + output_tokens * prices.output_s
        return gpu_s / WEIGHTS[priority]

    def _charge_prompt(self, work: Work, tokens: int) -> None:
        """Make it `tokens` of the prompt that are charged for, whatever it was before."""
        seconds = (tokens - work.charged_tokens) * self.prices.prompt_s
        work.charged_tokens = tokens
        self._charge(work, seconds)

    def _charge(self, work: Work, gpu_s: float) -> None:
        account = self._account(work.key_id)
        balance_s = account.credit_s - gpu_s / WEIGHTS[work.priority]
        account.counter_s += max(0.0, -balance_s)
        account.credit_s = max(0.0, balance_s)

    def _level_s(self, priority: int) -> float:
        active = (a.counter_s for a in self._accounts.values() if a.active[priority])
        return min(active, default=self._floors_s[priority])

    def _account(self, key_id: str) -> _Account:
        account = self._accounts.get(key_id)
        if account is None:
            self._make_room()
            account = self._accounts[key_id] = _Account()
        return account

    def _make_room(self) -> None:
        """Forget whoever is idle and used least: it would be lifted anyway."""
        if len(self._accounts) < self._max_keys:
            return
        idle = [key_id for key_id, account in self._accounts.items() if not account.is_active]
        assert idle, "more keys are active than requests may wait and run"
        del self._accounts[min(idle, key=self.counter_s)]
