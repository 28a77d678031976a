"""One answer from the cloud, with the face of a local turn: request → pieces → record.

Opened by endpoints, as `turns.Turn` is. Must not know JSON, SSE or HTTP.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from verger.api.answer import Outcome, Piece, total_usage
from verger.gateway.backends.cloud_request import CloudRequest
from verger.gateway.cloud import Cloud
from verger.gateway.edge import RequestRecord
from verger.gateway.providers import Target


@dataclass(slots=True)
class CloudTurn:
    """A request on its way to providers; nothing is sent before the first piece is asked for."""

    cloud: Cloud
    targets: tuple[Target, ...]
    request: CloudRequest
    record: RequestRecord
    monotonic_s: Callable[[], float]
    _outcomes: list[Outcome] = field(default_factory=list)

    @property
    def choices(self) -> int:
        """How many answers there will be."""
        return self.request.turn.choices

    async def pieces(self) -> AsyncGenerator[Piece]:
        """As `Turn.pieces`; raises ProviderUnavailable, ProviderRefused, ProviderContextExceeded or
        UpstreamInterrupted."""
        pieces = self.cloud.pieces(self.targets, self.request, self._note_commit)
        async with aclosing(pieces):
            async for choice, piece in pieces:
                if isinstance(piece, Outcome):
                    self._note_outcome(piece)
                elif self.record.first_delta_s is None:
                    self.record.first_delta_s = self.monotonic_s()
                yield choice, piece

    def _note_commit(self, target: Target) -> None:
        self.record.served_by = f"cloud:{target.provider.name}"

    def _note_outcome(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if len(self._outcomes) == self.choices:
            usage = total_usage([outcome.usage for outcome in self._outcomes])
            self.record.prompt_tokens = usage.prompt_tokens
            self.record.completion_tokens = usage.completion_tokens
            self.record.cached_tokens = usage.cached_tokens
            self.record.cost_usd = usage.cost_usd
            self.record.finish = ",".join(outcome.finish.value for outcome in self._outcomes)
