"""Nonsense on every route, with and without a key: no answer is a 5xx but a 503 that says when to
come back, and without a key nothing but the health routes answers with a 200."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.keys import bearer, make_key
from tests.process.serving import Served, serving

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

OPEN = {"/livez", "/readyz", "/v1/health"}
PATHS = (
    *("/v1/chat/completions", "/v1/models", "/v1/models/x", "/v1/status", "/connect"),
    *("/livez", "/readyz", "/v1/health", "/", "/v1", "/nowhere", "/v1/models/%00", "/%2e%2e/x"),
)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
EXAMPLES = 300
FIELDS = (
    "model messages stream stream_options n max_tokens max_completion_tokens temperature top_p "
    "top_k min_p seed stop logprobs top_logprobs logit_bias tools tool_choice response_format "
    "reasoning_effort frequency_penalty presence_penalty user metadata store functions audio odd"
).split()

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["user", "gpt-4o", "auto", "function", "text", "\ud7ff", "<|start|>"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"])},
        optional={
            "content": values,
            "tool_calls": values,
            "tool_call_id": scalars,
            "reasoning": scalars,
            "name": scalars,
        },
    ),
    max_size=5,
)
bodies = st.one_of(
    st.fixed_dictionaries(
        {"model": st.just("gpt-4o"), "messages": messages},
        optional={name: values for name in FIELDS if name not in ("model", "messages")},
    ),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6),
    values,
)
HEADERS = (
    "accept",
    "content-type",
    "x-verger-priority",
    "x-verger-route",
    "origin",
    "x-api-key",
    "range",
)
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
headers = st.dictionaries(st.sampled_from(HEADERS), printable.map(str.strip), max_size=3)
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("fuzz") / "served") as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    root = served.url.removesuffix("/v1")
    with httpx.Client(base_url=root, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def key(served: Served) -> str:
    return make_key(served.database, "fuzz")


def check(response: httpx.Response) -> None:
    if response.status_code >= 500:
        assert response.status_code == 503, response.text
        assert "retry-after" in response.headers


@bounded
@given(method=st.sampled_from(METHODS), path=st.sampled_from(PATHS), body=bodies, extra=headers)
def test_no_route_fails_with_a_key(
    client: httpx.Client, key: str, method: str, path: str, body: Any, extra: dict[str, str]
) -> None:
    check(client.request(method, path, json=body, headers={**extra, **bearer(key)}))


@bounded
@given(body=bodies)
def test_no_chat_body_fails(client: httpx.Client, key: str, body: Any) -> None:
    check(client.post("/v1/chat/completions", json=body, headers=bearer(key)))


@bounded
@given(content=st.binary(max_size=200))
def test_no_bytes_in_place_of_a_body_fail(client: httpx.Client, key: str, content: bytes) -> None:
    check(client.post("/v1/chat/completions", content=content, headers=bearer(key)))


@bounded
@given(method=st.sampled_from(METHODS), path=st.sampled_from(PATHS), body=bodies, extra=headers)
def test_without_a_key_only_the_health_routes_answer(
    client: httpx.Client, method: str, path: str, body: Any, extra: dict[str, str]
) -> None:
    response = client.request(method, path, json=body, headers=extra)
    check(response)
    assert response.status_code >= 400 or path in OPEN


def test_after_all_of_that_it_serves_on(served: Served, key: str) -> None:
    """The folder is this test's own, so its path says nothing that the log could repeat."""
    assert served.ask(key).status_code == 200
    assert "event=defect" not in "".join(served.lines)
    assert Path(served.database).exists()
