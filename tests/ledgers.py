"""Rows, reservations and budgets that the ledger's tests share."""

from typing import Any

from verger.gateway.ledger_store import Budget, LedgerRow, Reservation

NOVEMBER_MS = 1_795_300_000_000
"""2026-11-21."""
DECEMBER_MS = 1_796_300_000_000
"""2026-12-03."""
RICH = Budget(key_micro_usd=10**9, total_micro_usd=10**9)


def reservation(name: str, worst: int = 100, **changes: Any) -> Reservation:
    """For key alice at provider acme, in November."""
    fields: dict[str, Any] = {
        "unix_ms": NOVEMBER_MS,
        "key_id": "alice",
        "model": "gpt-oss-20b",
        "provider": "acme",
    }
    return Reservation(request_id=name, worst_micro_usd=worst, **{**fields, **changes})


def cloud_row(of: Reservation, cost: int, **changes: Any) -> LedgerRow:
    """What became of a reservation."""
    fields: dict[str, Any] = {
        "unix_ms": of.unix_ms,
        "finish": "stop",
        "output_tokens": 5,
        "baseline_micro_usd": 2 * cost,
    }
    return LedgerRow(
        request_id=of.request_id,
        attempt=of.attempt,
        key_id=of.key_id,
        model=of.model,
        route="cloud",
        provider=of.provider,
        cost_micro_usd=cost,
        **{**fields, **changes},
    )


def local_row(name: str, **changes: Any) -> LedgerRow:
    """A request that this machine answered."""
    fields: dict[str, Any] = {
        "unix_ms": NOVEMBER_MS,
        "key_id": "alice",
        "model_asked": "gpt-5-mini",
        "model": "gpt-oss-20b",
        "route": "local",
        "reason": "only-route",
        "finish": "stop",
        "uncached_tokens": 30,
        "cached_tokens": 10,
        "output_tokens": 20,
        "wall_ms": 500,
        "baseline_id": "openai-2025-08-07/gpt-5-mini",
        "baseline_micro_usd": 50,
    }
    return LedgerRow(request_id=name, **{**fields, **changes})
