"""What providers say when they refuse: whose fault it is, and what a client may be told."""

from typing import Any

import msgspec
import pytest

from verger.gateway.backends import failure as rules
from verger.gateway.backends.failure import (
    Fault,
    UpstreamFailure,
    failure_in_band,
    failure_of_status,
    refused_field,
)


def of_status(status: int, body: Any = None, retry_after: str = "") -> UpstreamFailure:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return failure_of_status(status, {"retry-after": retry_after}, content, 1_000_000_000.0)


@pytest.mark.parametrize(
    ("status", "message", "fault"),
    [
        (400, "unknown field", Fault.REFUSED),
        (400, "This model's maximum context length is 8 tokens", Fault.TOO_LONG),
        (400, "prompt is too long: 9 > 8", Fault.TOO_LONG),
        (401, "no such key", Fault.DENIED),
        (402, "no credits", Fault.DENIED),
        (403, "your account", Fault.DENIED),
        (403, "your input was flagged", Fault.REFUSED),
        (404, "no endpoints", Fault.ABSENT),
        (408, "", Fault.FAULTY),
        (413, "", Fault.TOO_LONG),
        (422, "", Fault.REFUSED),
        (429, "", Fault.BUSY),
        (500, "", Fault.FAULTY),
        (503, "", Fault.BUSY),
        (307, "", Fault.ABSENT),
    ],
)
def test_the_status_says_whose_fault_it_is(status: int, message: str, fault: Fault) -> None:
    assert of_status(status, {"error": {"message": message}}).fault is fault


def test_a_code_says_it_better_than_the_status() -> None:
    body = {"error": {"message": "-", "code": "context_length_exceeded"}}
    assert of_status(400, body).fault is Fault.TOO_LONG
    assert of_status(429, {"error": {"code": "insufficient_quota"}}).fault is Fault.DENIED


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no"}},
        [{"error": {"message": "no", "code": 400, "status": "INVALID_ARGUMENT"}}],
        {"error": "no"},
    ],
)
def test_errors_are_read_in_every_shape_that_is_known(body: Any) -> None:
    assert of_status(400, body).words == "no"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"{}", b"null", b"\xff", b"[" * 9_999])
def test_a_body_that_is_no_error_is_no_obstacle(body: bytes) -> None:
    failure = of_status(500, body)
    assert (failure.fault, failure.words, failure.what) == (Fault.FAULTY, "", "HTTP 500")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", None),
        ("5", 5.0),
        ("0.5", 0.5),
        ("300", 300.0),
        ("0", None),
        ("-1", None),
        ("soon", None),
        ("nan", None),
        ("1e9", rules.MAX_WAIT_S),
        ("Sun, 09 Sep 2001 01:46:50 GMT", 10.0),
        ("Sun, 09 Sep 2001 01:46:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert of_status(429, None, header).retry_after_s == seconds


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ({"code": 429, "message": "slow down"}, Fault.BUSY),
        ({"code": 402}, Fault.DENIED),
        ({"code": "server_error"}, Fault.FAULTY),
        ({"code": 7}, Fault.FAULTY),
        ("overloaded", Fault.FAULTY),
    ],
)
def test_an_error_inside_a_200_counts_like_one_outside(error: Any, fault: Fault) -> None:
    assert failure_in_band(error).fault is fault


def test_a_providers_words_are_cut_off() -> None:
    words = of_status(400, {"error": {"message": "x" * (rules.MAX_WORDS + 1)}}).words
    assert len(words) == rules.MAX_WORDS


@pytest.mark.parametrize(
    ("words", "param", "field"),
    [
        ("no", "seed", "seed"),
        ("Unsupported value: 'temperature' must be 1", None, "temperature"),
        ("temperature and seed", None, None),
        ("messages[0].content", "messages", None),
        ("reseeded temperatures", None, None),
    ],
)
def test_the_refused_field_is_found(words: str, param: str | None, field: str | None) -> None:
    failure = UpstreamFailure(Fault.REFUSED, "HTTP 400", words=words, param=param)
    assert refused_field(failure, frozenset({"temperature", "seed"})) == field
