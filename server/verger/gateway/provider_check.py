"""Whether a provider can really be used: its key file, its list of models, one tiny request.

Run by `verger providers check`, and by `cloud` at the server's start: what has not been proved is
not relied upon. Must not know who asks. It costs what some twenty tokens cost.
"""

import difflib
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import Struct

from verger.api.turn_request import TurnRequest
from verger.errors import BudgetExhausted, LedgerUnavailable
from verger.formats.conversation import Conversation, Effort, Message, Role
from verger.gateway.backends.cloud_request import CloudRequest
from verger.gateway.backends.failure import Fault, UpstreamFailure
from verger.gateway.providers import Provider, Target
from verger.messages import Sampling

if TYPE_CHECKING:
    from verger.gateway.backends.cloud import CloudBackend
    from verger.gateway.purse import Purse

CHECK_S = 30.0
"""For each of the two requests."""
TINY_TOKENS = 16
"""The least that OpenAI accepts."""
TINY_PROMPT_TOKENS = 100
"""No template makes more of three words."""
MAX_NAMED_MODELS = 3
UNPAID = "the check cannot be paid (see [spill] monthly_budget_usd in config.toml)"

_TINY = TurnRequest(
    Conversation((Message(Role.USER, "Say hi."),), effort=Effort.LOW),
    Sampling(),
    max_tokens=TINY_TOKENS,
)


class Check(Struct, frozen=True, kw_only=True):
    """What came of it. `problem` says what is wrong and what to do."""

    provider: str
    kind: str
    model: str
    is_usable: bool
    problem: str | None = None
    is_final: bool = False
    """Trying again does not help: something has to be repaired first."""


async def check_provider(
    backend: "CloudBackend",
    provider: Provider,
    purse: "Purse | None" = None,
    budget_s: float = CHECK_S,
) -> Check:
    """Never raises: whatever is wrong is the result. `purse` pays; without one nobody accounts."""
    target = Target(provider, next(iter(provider.models)))
    if provider.problem is not None:
        return _failed(target, provider.problem, is_final=True)
    try:
        listed = await backend.model_ids(provider, budget_s)
    except UpstreamFailure as failure:
        # Not everybody has a list; the request below is the proof.
        if failure.fault in (Fault.DENIED, Fault.UNREACHABLE, Fault.SILENT):
            return _judged(target, failure, frozenset())
        listed = frozenset()
    try:
        await _ask(backend, target, purse, budget_s)
    except (BudgetExhausted, LedgerUnavailable) as unpaid:
        return _failed(target, f"{UNPAID}: {unpaid}", is_final=False)
    except UpstreamFailure as failure:
        return _judged(target, failure, listed)
    return Check(
        provider=provider.name, kind=provider.kind.kind, model=target.model_id, is_usable=True
    )


async def _ask(
    backend: "CloudBackend", target: Target, purse: "Purse | None", budget_s: float
) -> None:
    request = CloudRequest("check", _TINY, TINY_PROMPT_TOKENS, count_text=len)
    if purse is not None:
        request = replace(request, on_spent=purse.spend)
        await purse.reserve(target)
    try:
        async with aclosing(backend.open_stream(target, request, budget_s)) as pieces:
            async for _ in pieces:
                pass
    except UpstreamFailure:
        if purse is not None:
            purse.give_back()
        raise
    finally:
        if purse is not None:
            purse.close()


def _judged(target: Target, failure: UpstreamFailure, listed: frozenset[str]) -> Check:
    told = f"{failure.what}: {failure.words}" if failure.words else failure.what
    advice = _advice(target, failure.fault, listed)
    is_final = failure.fault in (Fault.DENIED, Fault.ABSENT, Fault.REFUSED)
    return _failed(target, f"{told}; {advice}" if advice else told, is_final=is_final)


def _advice(target: Target, fault: Fault, listed: frozenset[str]) -> str:
    provider = target.provider
    match fault:
        case Fault.UNREACHABLE | Fault.SILENT:
            return f"is {provider.base_url} right, and reachable from this machine?"
        case Fault.DENIED:
            where = f" in {provider.key_file}" if provider.key_file else ""
            return f"replace the key{where} ({provider.kind.key_hint}), or see to the account"
        case Fault.ABSENT | Fault.REFUSED if listed and target.model_id not in listed:
            nearest = difflib.get_close_matches(
                target.model_id, sorted(listed), n=MAX_NAMED_MODELS, cutoff=0.0
            )
            return f"it has no model {target.model_id}; its nearest are {', '.join(nearest)}"
        case Fault.ABSENT:
            return f"does it have the model {target.model_id}, and its API at {provider.base_url}?"
    return ""


def _failed(target: Target, problem: str, *, is_final: bool) -> Check:
    return Check(
        provider=target.provider.name,
        kind=target.provider.kind.kind,
        model=target.model_id,
        is_usable=False,
        problem=problem,
        is_final=is_final,
    )
