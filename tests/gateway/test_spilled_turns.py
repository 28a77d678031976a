"""A turn that a cloud shall answer: what whoever can hand it over is told, and when."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.gateway.harness import MAX_ROWS, Gateway, PlayedEngine, ready_gateway
from tests.principals import caller
from verger.api.turn_request import TurnRequest
from verger.errors import ContextLengthExceeded
from verger.formats.conversation import Conversation, Message, Role
from verger.formats.harmony import render
from verger.gateway.edge import RequestRecord
from verger.gateway.principal import Principal, RoutePolicy
from verger.gateway.rates import Rates
from verger.gateway.routing import ENTER_SAMPLES, Limits, Place, Reason, Spilled
from verger.gateway.submit_queue import LOOK_AHEAD_ROWS
from verger.gateway.turns import Turn, open_turn
from verger.messages import Sampling, Submit

pytestmark = pytest.mark.anyio

ROAMER = caller("roamer", route=RoutePolicy.PREFER_LOCAL)
HOME = caller("home", route=RoutePolicy.LOCAL_ONLY)
LIMITS = Limits(ttft_objective_s=1.0, max_wait_s=1_000.0)


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[tuple[Gateway, PlayedEngine]]:
    """All rows are taken, for a quarter of a minute."""
    async with ready_gateway(tmp_path, limits=LIMITS) as made, AsyncExitStack() as stack:
        engine = made[0].service.engine
        submit = Submit(request_id=0, prompt=[1], max_tokens=1_000, stop_ids=[])
        for _ in range(MAX_ROWS + LOOK_AHEAD_ROWS):
            await stack.enter_async_context(engine.generate(submit))
        engine._rates.rates = Rates(step_s=0.04, is_measured=True)
        yield made


async def first_piece(turn: Turn) -> None:
    async for _ in turn.pieces():
        raise AssertionError("nothing was said")


async def opened(
    stack: AsyncExitStack, gateway: Gateway, principal: Principal, text: str = "hi"
) -> Turn:
    conversation = Conversation((Message(Role.USER, text),))
    request = TurnRequest(conversation, Sampling())
    prompt = render(conversation, gateway.service.vocabulary)
    record = RequestRecord("id", arrived_s=gateway.service.monotonic_s())
    return await stack.enter_async_context(
        open_turn(gateway.service, principal, request, prompt, record, cloud=lambda: True)
    )


async def test_a_turn_that_waits_ends_with_spilled_and_gives_up_its_place(
    busy: tuple[Gateway, PlayedEngine],
) -> None:
    gateway, _ = busy
    service = gateway.service
    async with AsyncExitStack() as stack:
        turn = await opened(stack, gateway, ROAMER)
        turn.note_served()
        assert (turn.record.served_by, turn.record.reason) == ("local", "waits")
        assert service.engine.queued == 1
        for _ in range(ENTER_SAMPLES):
            service.admission.review()
        assert service.engine.queued == 0, "it cannot get its turn any more"
        with pytest.raises(Spilled) as spilled:
            await first_piece(turn)

    assert spilled.value.route.place is Place.CLOUD
    assert spilled.value.route.reason is Reason.SATURATED


async def test_a_turn_that_must_stay_waits_on(busy: tuple[Gateway, PlayedEngine]) -> None:
    gateway, _ = busy
    async with AsyncExitStack() as stack:
        turn = await opened(stack, gateway, HOME)
        for _ in range(2 * ENTER_SAMPLES):
            gateway.service.admission.review()
        assert gateway.service.engine.queued == 1
        turn.note_served()
        assert turn.record.reason == "waits"


async def test_once_spilling_has_set_in_a_turn_is_not_even_opened(
    busy: tuple[Gateway, PlayedEngine],
) -> None:
    gateway, _ = busy
    async with AsyncExitStack() as stack:
        for _ in range(ENTER_SAMPLES - 1):
            await opened(stack, gateway, ROAMER)
        with pytest.raises(Spilled):
            await opened(stack, gateway, ROAMER)


@pytest.mark.parametrize(("principal", "error"), [(ROAMER, Spilled), (HOME, ContextLengthExceeded)])
async def test_a_prompt_that_is_too_long_for_this_machine_may_go_elsewhere(
    busy: tuple[Gateway, PlayedEngine], principal: Principal, error: type[Exception]
) -> None:
    gateway, _ = busy
    too_long = "x" * (gateway.service.context_tokens + 1)
    async with AsyncExitStack() as stack:
        with pytest.raises(error) as raised:
            await opened(stack, gateway, principal, too_long)
    if isinstance(raised.value, Spilled):
        assert raised.value.route.reason is Reason.TOO_LONG_FOR_HERE
