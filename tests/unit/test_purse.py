"""What becomes of a reservation: released, settled as the provider says, or left to the end."""

from pathlib import Path

import pytest

from tests.ledgers import NOVEMBER_MS
from tests.providers import MODEL, target_of
from tests.unit.test_accounting import NotingLedger
from verger.api.answer import Usage
from verger.costs.prices import Snapshot
from verger.gateway.accounting import Accounts
from verger.gateway.backends.cloud_request import Spent
from verger.gateway.edge import RequestRecord
from verger.gateway.providers import Target
from verger.gateway.purse import Purse

pytestmark = pytest.mark.anyio

USAGE = Usage(prompt_tokens=200, completion_tokens=10, cached_tokens=0, reasoning_tokens=4)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def ledger() -> NotingLedger:
    return NotingLedger()


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A dollar and four per million tokens."""
    return target_of(tmp_path)


@pytest.fixture
def purse(ledger: NotingLedger) -> Purse:
    return Purse(
        Accounts(ledger, "local", Snapshot(), None, lambda: NOVEMBER_MS / 1000),
        RequestRecord(id="req_1", arrived_s=10.0, model="openrouter/m"),
        prompt_tokens=100,
        max_tokens=50,
        key_budget_usd=1.0,
        total_budget_usd=2.0,
        monotonic_s=lambda: 12.0,
    )


async def test_the_worst_case_is_reserved_for_what_will_answer(
    purse: Purse, target: Target, ledger: NotingLedger
) -> None:
    await purse.reserve(target)
    (reserved,) = ledger.reserved
    assert (reserved.worst_micro_usd, reserved.attempt) == (100 + 4 * 50, 1)
    assert (reserved.model, reserved.provider) == (MODEL, "openrouter")


@pytest.mark.parametrize("is_taken", [True, False])
async def test_a_failure_before_the_first_delta_is_given_back(
    is_taken: bool, purse: Purse, target: Target, ledger: NotingLedger
) -> None:
    await purse.reserve(target)
    if is_taken:
        purse.spend(Spent(target, USAGE, is_counted=True))
    purse.give_back()
    assert (ledger.reserved, ledger.rows) == ([], [])


async def test_one_whose_use_the_provider_reports_is_paid(
    purse: Purse, target: Target, ledger: NotingLedger
) -> None:
    await purse.reserve(target)
    purse.spend(Spent(target, USAGE, is_counted=False))
    purse.give_back()
    (row,) = ledger.rows
    assert (row.cost_micro_usd, row.attempt, row.wall_ms) == (200 + 4 * 10, 1, 2_000)


async def test_the_next_attempt_begins_with_nothing_of_the_last_one(
    purse: Purse, target: Target, ledger: NotingLedger
) -> None:
    await purse.reserve(target)
    purse.spend(Spent(target, USAGE, is_counted=False))
    purse.give_back()
    await purse.reserve(target)
    record = purse.record
    assert (record.prompt_tokens, record.completion_tokens, record.cost_usd) == (100, None, None)
    purse.give_back()
    assert (ledger.reserved, len(ledger.rows)) == ([], 1)


async def test_whoever_leaves_before_anything_came_pays_for_the_prompt(
    purse: Purse, target: Target, ledger: NotingLedger
) -> None:
    await purse.reserve(target)
    purse.close()
    (row,) = ledger.rows
    assert row.cost_micro_usd == 100


async def test_what_is_settled_is_settled_once(
    purse: Purse, target: Target, ledger: NotingLedger
) -> None:
    await purse.reserve(target)
    purse.close()
    purse.close()
    assert len(ledger.rows) == 1
