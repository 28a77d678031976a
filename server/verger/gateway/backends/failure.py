"""What goes wrong at a provider, in the few kinds that matter for what to do next.

Raised by `cloud`, judged by `failover` and `provider_check`. Pure: a status, headers and a body go
in. The provider's own words may repeat a prompt: they are shown to the client who sent it, and
never logged.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import msgspec

MAX_WORDS = 400
"""Characters of a provider's own words that a client is shown."""
MAX_WAIT_S = 86_400.0


class Fault(Enum):
    """Whose fault it is, and so what helps."""

    UNREACHABLE = "unreachable"  # No connection: try again, then somebody else.
    SILENT = "silent"  # Nothing that counts came in time.
    BROKEN = "broken"  # Cut off, or not what was agreed.
    FAULTY = "faulty"  # Its own error.
    BUSY = "busy"  # Too much is asked of it; it may say until when.
    DENIED = "denied"  # Our key or our account.
    ABSENT = "absent"  # No such model there, or not at that address.
    REFUSED = "refused"  # The request itself.
    TOO_LONG = "too-long"  # The request itself, for that model.


class UpstreamFailure(Exception):
    """An attempt failed. `what` is ours, and may be logged; `words` are the provider's."""

    def __init__(
        self,
        fault: Fault,
        what: str,
        *,
        words: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(what)
        self.fault = fault
        self.what = what
        self.words = words
        self.param = param
        self.retry_after_s = retry_after_s


_FAULTS: Mapping[int, Fault] = {
    400: Fault.REFUSED,
    401: Fault.DENIED,
    402: Fault.DENIED,
    403: Fault.DENIED,
    404: Fault.ABSENT,
    405: Fault.ABSENT,
    413: Fault.TOO_LONG,
    415: Fault.REFUSED,
    422: Fault.REFUSED,
    429: Fault.BUSY,
    503: Fault.BUSY,
    529: Fault.BUSY,
}
_CODES: Mapping[str, Fault] = {
    "context_length_exceeded": Fault.TOO_LONG,
    "invalid_api_key": Fault.DENIED,
    "insufficient_quota": Fault.DENIED,
    "rate_limit_exceeded": Fault.BUSY,
    "model_not_found": Fault.ABSENT,
}
_TOO_LONG = re.compile(
    r"context.{0,10}(?:length|window|size)|maximum context|prompt is too long|too many tokens", re.I
)
_FLAGGED = re.compile(r"moderation|flagged", re.I)


def failure_of_status(
    status: int, headers: Mapping[str, str], body: bytes, unix_s: float
) -> UpstreamFailure:
    """Of an answer that is no 200. Header names are in lower case, or the mapping does not care."""
    error = error_object(body)
    retry_after_s = _seconds(headers.get("retry-after", ""), unix_s)
    if 300 <= status < 400:
        what = f"redirects elsewhere (HTTP {status}); set base_url to the address it really has"
        return UpstreamFailure(Fault.ABSENT, what)
    return _failure(status, error, f"HTTP {status}", retry_after_s)


def failure_in_band(error: Any) -> UpstreamFailure:
    """Of an error object that came under HTTP 200, in place of a chunk or among chunks."""
    fields = error if isinstance(error, dict) else {"message": str(error)}
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return _failure(status, fields, f"an error inside HTTP 200 ({status})", None)


def error_object(body: bytes) -> dict[str, Any]:
    """The error in a body: OpenAI's shape, Gemini's array around it, or nothing that we know."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(decoded, list) and decoded:
        decoded = decoded[0]
    error = decoded.get("error") if isinstance(decoded, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def refused_field(failure: UpstreamFailure, candidates: frozenset[str]) -> str | None:
    """Which of our fields a refusal is about: the one it names, or the only one it mentions."""
    if failure.param in candidates:
        return failure.param
    mentioned = {name for name in candidates if re.search(rf"\b{name}\b", failure.words)}
    return mentioned.pop() if len(mentioned) == 1 else None


def _failure(
    status: int, error: Mapping[str, Any], what: str, retry_after_s: float | None
) -> UpstreamFailure:
    words = str(error.get("message") or "")
    fault = _FAULTS.get(status, Fault.REFUSED if status in range(400, 408) else Fault.FAULTY)
    fault = _CODES.get(str(error.get("code")), fault)
    if fault is Fault.REFUSED and _TOO_LONG.search(words):
        fault = Fault.TOO_LONG
    elif status == 403 and _FLAGGED.search(words):
        # OpenRouter's 403 can mean the prompt; taken for the key, it would lock everybody out.
        fault = Fault.REFUSED
    param = error.get("param")
    return UpstreamFailure(
        fault,
        what,
        words=words[:MAX_WORDS],
        param=param if isinstance(param, str) else None,
        retry_after_s=retry_after_s,
    )


def _seconds(retry_after: str, unix_s: float) -> float | None:
    """Retry-After is seconds or a date (RFC 9110 section 10.2.3)."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - unix_s
        except ValueError:
            return None
    return min(seconds, MAX_WAIT_S) if seconds > 0 else None
