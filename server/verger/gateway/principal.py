"""Who makes a request: what its key says, or nobody in particular.

Put into the scope by `authentication`, read by endpoints. Must not know how a key is checked.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

TENANT = "office"
"""Of everybody who is not given another; whoever has the same tenant shares cached prefixes."""
SCOPE_KEY = "verger.principal"
ROUTE_HEADER = "x-verger-route"
"""Of a request: it may narrow what its key allows, and never widen it."""


class Priority(StrEnum):
    """Whether somebody waits for the answers; a key's class."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class RoutePolicy(StrEnum):
    """Where a key's requests may be served, the narrowest first."""

    LOCAL_ONLY = "local-only"
    PREFER_LOCAL = "prefer-local"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Principal:
    """For the length of one request: `priority` and `route` are what the request asked to lower
    them to."""

    key_id: str
    """The key's public prefix; empty for whoever needs none."""
    name: str
    tenant: str
    is_admin: bool
    priority: Priority
    route: RoutePolicy
    max_parallel: int | None = None
    """Requests at once, and rows; None: no limit, and half of the rows."""
    budget_usd: float = 0.0
    """The most that its requests may cost at cloud providers in a calendar month."""


ANONYMOUS = Principal(
    key_id="",
    name="anonymous",
    tenant=TENANT,
    is_admin=True,
    priority=Priority.INTERACTIVE,
    route=RoutePolicy.LOCAL_ONLY,
)
"""Whoever asks a server that only its own machine can reach and that asks for no key."""


def principal_of(scope: MutableMapping[str, Any]) -> Principal:
    """Who makes the request that is being served."""
    principal: Principal = scope[SCOPE_KEY]
    return principal
