"""Callers for tests."""

from dataclasses import replace

from verger.gateway.principal import ANONYMOUS, Principal, Priority, RoutePolicy


def caller(
    key_id: str,
    *,
    max_parallel: int | None = None,
    priority: Priority = Priority.INTERACTIVE,
    route: RoutePolicy = RoutePolicy.LOCAL_ONLY,
) -> Principal:
    """Whoever has this key."""
    return replace(
        ANONYMOUS,
        key_id=key_id,
        name=key_id,
        is_admin=False,
        priority=priority,
        route=route,
        max_parallel=max_parallel,
    )
