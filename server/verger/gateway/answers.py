"""Who answers a request, and how it leaves for a cloud before its first delta, or comes back.

Opened by endpoints that generate. Leaving never makes it worse: where no provider answers, may be
paid or takes the request, it is served here as if there were none. Must not know JSON, SSE or HTTP.

    names a provider's model ─────────────────────────────► the cloud
    late here, refused, too long, no engine: leaves ──────► the cloud ─► nobody answers ─► here
    anything else ─► here ─► late, or the engine dies, before the first delta ─► the cloud ─► …
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from verger.api.answer import Piece
from verger.api.turn_request import TurnRequest
from verger.errors import EngineUnavailable, ReplyError
from verger.formats.harmony import Prompt
from verger.gateway.admission import Cloud, nowhere
from verger.gateway.choice import by_point
from verger.gateway.cloud_turns import cloud_turn
from verger.gateway.edge import RequestRecord
from verger.gateway.ledger_store import LOCAL
from verger.gateway.named import NAMED_MODEL
from verger.gateway.principal import Principal
from verger.gateway.providers import Target
from verger.gateway.routing import Reason, Spilled
from verger.gateway.service import Service
from verger.gateway.turns import Turn, open_turn
from verger.gateway.vitals import EngineVitals


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has been understood."""

    turn: TurnRequest
    prompt: Prompt
    principal: Principal
    record: RequestRecord
    """Says at any time who answers, or is expected to, why, and how long it has waited."""
    named: tuple[Target, ...] = ()
    """Whom it names itself; nobody: the served model."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes of it, wherever it is computed."""

    pieces: AsyncGenerator[Piece]
    turn: Turn | None = None
    """None if it was not even begun here."""
    note_served: Callable[[], None] = lambda: None
    """Brings the record up to date."""
    is_alive: Callable[[], bool] = lambda: True
    """Whether there is hope; a cloud's deadlines are bounds enough."""


@asynccontextmanager
async def open_answer(service: Service, asked: Asked) -> AsyncIterator[Answer]:
    """Let the request in; what is not refused from here may still fail in its pieces.

    Raises as `open_turn` does, but for Spilled. Leaving ends whatever still runs.
    """
    if asked.named:
        yield Answer(_named(service, asked))
        return
    cloud = _cloud_of(service, asked)
    async with AsyncExitStack() as stack:
        try:
            turn = await stack.enter_async_context(_here(service, asked, cloud))
        except Spilled as spilled:
            pieces = _away(service, asked, spilled.route.reason)
            answer = Answer(pieces, is_alive=_vitals(service, asked.record))
        else:
            answer = _begun_here(service, asked, turn, cloud)
        yield answer


def _begun_here(service: Service, asked: Asked, turn: Turn, cloud: Cloud) -> Answer:
    def instead(error: ReplyError) -> AsyncGenerator[Piece] | None:
        reason = _reason_to_leave(error, service, asked.principal, cloud)
        if reason is None:
            return None
        turn.has_left = True
        return _away(service, asked, reason, was_let_in=True)

    return Answer(
        _or_else(turn.pieces(), instead), turn, turn.note_served, _vitals(service, asked.record)
    )


def _here(
    service: Service, asked: Asked, cloud: Cloud = nowhere, *, was_let_in: bool = False
) -> AbstractAsyncContextManager[Turn]:
    return open_turn(
        service,
        asked.principal,
        asked.turn,
        asked.prompt,
        asked.record,
        cloud,
        was_let_in=was_let_in,
    )


def _vitals(service: Service, record: RequestRecord) -> Callable[[], bool]:
    """Whoever has come back, too, hears nothing of an engine that hangs."""
    vitals = EngineVitals(service.engine, service.monotonic_s)
    return lambda: vitals.is_alive() or record.served_by != LOCAL


async def _back_here(service: Service, asked: Asked, *, was_let_in: bool) -> AsyncGenerator[Piece]:
    async with _here(service, asked, was_let_in=was_let_in) as turn:
        turn.note_served()
        async with aclosing(turn.pieces()) as pieces:
            async for piece in pieces:
                yield piece


def _away(
    service: Service, asked: Asked, reason: Reason, *, was_let_in: bool = False
) -> AsyncGenerator[Piece]:
    """Whatever stands in the way there, a refusal of the request as well, need not do so here."""
    pieces = _at(spill_targets(service, asked.turn), reason.value, service, asked)
    return _or_else(pieces, lambda _: _back_here(service, asked, was_let_in=was_let_in))


def _named(service: Service, asked: Asked) -> AsyncGenerator[Piece]:
    return _at(asked.named, NAMED_MODEL, service, asked)


def _at(
    targets: tuple[Target, ...], reason: str, service: Service, asked: Asked
) -> AsyncGenerator[Piece]:
    record, tokens = asked.record, len(asked.prompt.ids)
    record.reason = reason
    record.served_by = f"cloud:{targets[0].provider.name}" if targets else "cloud"
    record.queue_ms = round((service.monotonic_s() - record.arrived_s) * 1000)
    return cloud_turn(service, asked.principal, targets, asked.turn, tokens, record).pieces()


def spill_targets(service: Service, turn: TurnRequest) -> tuple[Target, ...]:
    """Who could take a request over, the cheapest point of intelligence first; often nobody.
    Whether its key lets it leave is for the admission to say."""
    settings = service.settings
    if not settings.can_spill:
        return ()
    able = service.cloud.spill_targets(turn)
    return by_point(able, settings.model_id, settings.min_intelligence, settings.prices)


def _cloud_of(service: Service, asked: Asked) -> Cloud:
    return lambda: bool(spill_targets(service, asked.turn))


def _reason_to_leave(
    error: ReplyError, service: Service, principal: Principal, cloud: Cloud
) -> Reason | None:
    """Why a request whose answer here has failed before its first delta goes elsewhere; None if it
    does not."""
    try:
        if isinstance(error, EngineUnavailable):
            service.admission.spill_if_may(principal, cloud, Reason.ENGINE_DOWN)
    except Spilled as spilled:
        error = spilled
    return error.route.reason if isinstance(error, Spilled) else None


async def _or_else(
    pieces: AsyncGenerator[Piece], instead: Callable[[ReplyError], AsyncGenerator[Piece] | None]
) -> AsyncGenerator[Piece]:
    """The pieces; or, if they fail before the first one, what `instead` has for that error."""
    has_begun = False
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                has_begun = True
                yield piece
        return
    except ReplyError as error:
        others = None if has_begun else instead(error)
        if others is None:
            raise
    async with aclosing(others):
        async for piece in others:
            yield piece
