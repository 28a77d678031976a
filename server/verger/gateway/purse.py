"""What one request's attempts at providers cost: reserved before each, settled or released after.

Made by `cloud_turns` for each request and by `cloud` for each check. Must not know HTTP or SQL.

    reserve ──► attempt ──► answered, broken off after a delta, or the client has left: the edge
                   │        settles it, by the provider's count, else by ours
                   ├──────► failed before a delta: released, as nothing was delivered
                   └──────► failed, and yet the provider says what it used: settled by that
"""

from collections.abc import Callable
from dataclasses import dataclass

from verger.costs.formulas import micro_usd
from verger.gateway.accounting import Accounts
from verger.gateway.backends.cloud_request import Spent
from verger.gateway.edge import RequestRecord
from verger.gateway.ledger_store import Budget
from verger.gateway.providers import Provider, Target


@dataclass(slots=True)
class Purse:
    """Of one request. The most that each attempt may use is known beforehand."""

    accounts: Accounts
    record: RequestRecord
    prompt_tokens: int
    """By our own count."""
    max_tokens: int
    """Of all choices together."""
    key_budget_usd: float
    total_budget_usd: float
    monotonic_s: Callable[[], float]
    _is_reported: bool = False

    async def reserve(self, target: Target) -> None:
        """Before an attempt. Raises BudgetExhausted or LedgerUnavailable."""
        record = self.record
        record.prompt_tokens, record.completion_tokens = self.prompt_tokens, None
        record.cached_tokens = record.reasoning_tokens = record.cost_usd = None
        self._is_reported = False
        await self.accounts.reserve(
            record,
            target.provider.name,
            target.price,
            self.max_tokens,
            self._budget(target.provider),
            target.model,
        )

    def spend(self, spent: Spent) -> None:
        """What an attempt used, whether or not it failed."""
        record, usage = self.record, spent.usage
        self._is_reported = not spent.is_counted
        record.prompt_tokens, record.completion_tokens = (
            usage.prompt_tokens,
            usage.completion_tokens,
        )
        record.cached_tokens, record.reasoning_tokens = usage.cached_tokens, usage.reasoning_tokens
        if record.call is not None:
            record.call.said_usd = usage.cost_usd
        record.cost_usd = self.accounts.cost_usd(record)

    def give_back(self) -> None:
        """An attempt has failed before its first delta."""
        if self._is_reported:
            self.close()
        else:
            self.accounts.release(self.record)

    def close(self) -> None:
        """Settle what is reserved, if anything is."""
        if self.record.call is not None:
            self.accounts.close(self.record, self.monotonic_s() - self.record.arrived_s)

    def _budget(self, provider: Provider) -> Budget:
        own_usd = provider.monthly_budget_usd
        return Budget(
            key_micro_usd=micro_usd(self.key_budget_usd),
            total_micro_usd=micro_usd(self.total_budget_usd),
            provider_micro_usd=None if own_usd is None else micro_usd(own_usd),
        )
