"""One answer from the cloud, with the face of a local turn: request → pieces → record.

Opened by endpoints, as `turns.Turn` is, for whatever reason a request goes to the cloud:

    targets = spill_targets(service, request.turn)     or cloud.fitting(cloud.named(…))
    turn = cloud_turn(service, principal, targets, request.turn, len(prompt.ids), record)
    async for choice, piece in turn.pieces(): …

Whoever calls has made sure that the principal's route allows it; budgets are seen to here. Must not
know JSON, SSE or HTTP.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec.structs import replace

from verger.api.answer import Outcome, Piece
from verger.api.turn_request import TurnRequest
from verger.gateway.backends.cloud_request import CloudRequest
from verger.gateway.backends.upstream_body import MAX_ANSWER_TOKENS
from verger.gateway.cloud import Cloud
from verger.gateway.edge import RequestRecord
from verger.gateway.principal import Principal
from verger.gateway.provider_check import TINY_PROMPT_TOKENS, TINY_TOKENS
from verger.gateway.providers import Target
from verger.gateway.purse import Purse
from verger.gateway.service import Service

CHECK = "provider-check"


@dataclass(slots=True)
class CloudTurn:
    """A request on its way to providers; nothing is sent before the first piece is asked for."""

    cloud: Cloud
    targets: tuple[Target, ...]
    request: CloudRequest
    record: RequestRecord
    monotonic_s: Callable[[], float]
    _finishes: list[str] = field(default_factory=list)

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return self.request.turn.choices

    async def pieces(self) -> AsyncGenerator[Piece]:
        """As `Turn.pieces`; raises ProviderUnavailable, ProviderRefused, ProviderContextExceeded,
        UpstreamInterrupted, BudgetExhausted or LedgerUnavailable."""
        pieces = self.cloud.pieces(self.targets, self.request, self._note_commit)
        async with aclosing(pieces):
            async for choice, piece in pieces:
                if isinstance(piece, Outcome):
                    yield choice, self._noted(piece)
                    continue
                if self.record.first_delta_s is None:
                    self.record.first_delta_s = self.monotonic_s()
                yield choice, piece

    def _note_commit(self, target: Target) -> None:
        self.record.served_by = f"cloud:{target.provider.name}"

    def _noted(self, outcome: Outcome) -> Outcome:
        """With the cost as the ledger will have it, which the provider may not have said."""
        self._finishes.append(outcome.finish.value)
        if len(self._finishes) == self.choices:
            self.record.finish = ",".join(self._finishes)
        return Outcome(outcome.finish, replace(outcome.usage, cost_usd=self.record.cost_usd))


def cloud_turn(
    service: Service,
    principal: Principal,
    targets: tuple[Target, ...],
    turn: TurnRequest,
    prompt_tokens: int,
    record: RequestRecord,
) -> CloudTurn:
    """Ask the targets in turn for the answer; each attempt is reserved and settled in the ledger.

    Leaving the pieces before their end closes what is open; the edge accounts for it.
    """
    purse = Purse(
        service.accounts,
        record,
        prompt_tokens,
        max_tokens=turn.choices * (turn.max_tokens or MAX_ANSWER_TOKENS),
        key_budget_usd=principal.budget_usd,
        total_budget_usd=service.settings.cloud_budget_usd,
        monotonic_s=service.monotonic_s,
    )
    request = CloudRequest(
        record.id,
        turn,
        prompt_tokens,
        service.count_tokens,
        reserve=purse.reserve,
        on_failed=purse.give_back,
        on_spent=purse.spend,
    )
    return CloudTurn(service.cloud, targets, request, record, service.monotonic_s)


def check_purse(service: Service) -> Purse:
    """For the check of a provider, which is paid out of what all may spend together."""
    record = RequestRecord(f"check_{service.new_id()}", service.monotonic_s(), reason=CHECK)
    total_usd = service.settings.cloud_budget_usd
    return Purse(
        service.accounts,
        record,
        TINY_PROMPT_TOKENS,
        max_tokens=TINY_TOKENS,
        key_budget_usd=total_usd,
        total_budget_usd=total_usd,
        monotonic_s=service.monotonic_s,
    )
