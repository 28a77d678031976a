"""What a request may ask for: less than its key allows, and nothing that does not exist."""

import pytest

from tests.principals import caller
from verger.errors import InvalidRequest
from verger.gateway.principal import Priority, RoutePolicy, narrowed

ANY, PREFER, LOCAL = RoutePolicy.ANY, RoutePolicy.PREFER_LOCAL, RoutePolicy.LOCAL_ONLY


@pytest.mark.parametrize(
    ("key", "asked", "expected"),
    [
        (LOCAL, None, LOCAL),
        (LOCAL, "any", LOCAL),
        (LOCAL, "prefer-local", LOCAL),
        (PREFER, None, PREFER),
        (PREFER, "any", PREFER),
        (PREFER, "local-only", LOCAL),
        (ANY, None, ANY),
        (ANY, "any", ANY),
        (ANY, "prefer-local", PREFER),
        (ANY, "local-only", LOCAL),
    ],
)
def test_a_request_may_stay_here_but_not_go_where_its_key_may_not(
    key: RoutePolicy, asked: str | None, expected: RoutePolicy
) -> None:
    headers = {"x-verger-route": asked} if asked else {}
    assert narrowed(caller("k", route=key), headers).route is expected


def test_both_wishes_are_taken_together() -> None:
    headers = {"x-verger-route": "local-only", "x-verger-priority": "batch"}
    made = narrowed(caller("k", route=ANY), headers)
    assert (made.route, made.priority) == (LOCAL, Priority.BATCH)


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("x-verger-route", "any, prefer-local, local-only"),
        ("x-verger-priority", "interactive, batch"),
    ],
)
@pytest.mark.parametrize("asked", ["", "cloud", "ANY", "batch,batch"])
def test_what_does_not_exist_is_refused_with_what_does(
    header: str, allowed: str, asked: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        narrowed(caller("k"), {header: asked})
    assert refused.value.message == f"{header} must be one of {allowed}."
