"""What becomes of a request's record: its cost, what it would have cost elsewhere, its energy."""

import pytest

from tests.ledgers import NOVEMBER_MS
from tests.prices import GPT_5_MINI, MINI, price
from verger.costs.formulas import Machine
from verger.costs.prices import Offer, Snapshot
from verger.errors import BudgetExhausted
from verger.gateway.accounting import Accounts
from verger.gateway.edge import RequestRecord
from verger.gateway.ledger import Ledger
from verger.gateway.ledger_store import Budget, LedgerRow, Reservation

pytestmark = pytest.mark.anyio

OFFERS = (
    Offer("acme", "gpt-oss-20b", price(1.0, 4.0, cached_usd=0.5)),
    Offer("zoo", "gpt-oss-20b", price(2.0, 3.0)),
    Offer("openai", "gpt-5-mini", GPT_5_MINI),
)
RICH = Budget(key_micro_usd=10**9, total_micro_usd=10**9)


class NotingLedger(Ledger):
    """Writes down what it is handed instead of writing it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[LedgerRow] = []
        self.reserved: list[Reservation] = []

    def record(self, row: LedgerRow) -> None:
        self.rows.append(row)

    async def reserve(self, reservation: Reservation, budget: Budget) -> None:
        if reservation.worst_micro_usd > budget.total_micro_usd:
            raise BudgetExhausted("too much")
        self.reserved.append(reservation)

    def settle(self, reservation: Reservation, row: LedgerRow):  # type: ignore[no-untyped-def]
        assert reservation in self.reserved
        self.reserved.remove(reservation)
        self.rows.append(row)

    def release(self, reservation: Reservation):  # type: ignore[no-untyped-def]
        self.reserved.remove(reservation)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def ledger() -> NotingLedger:
    return NotingLedger()


def accounts(ledger: NotingLedger, machine: Machine | None = MINI) -> Accounts:
    return Accounts(ledger, "gpt-oss-20b", Snapshot(OFFERS), machine, lambda: NOVEMBER_MS / 1000)


def answered(asked: str = "gpt-oss-20b") -> RequestRecord:
    """By this machine: 3,000 tokens of prompt, 1,800 of them cached, and 120 of output."""
    return RequestRecord(
        id="req_1",
        arrived_s=10.0,
        model="gpt-oss-20b",
        model_asked=asked,
        reason="only-route",
        route="local",
        prompt_tokens=3_000,
        cached_tokens=1_800,
        completion_tokens=120,
        reasoning_tokens=20,
        first_delta_s=11.5,
        finish="stop",
    )


def local_row(
    ledger: NotingLedger, record: RequestRecord, machine: Machine | None = MINI
) -> LedgerRow:
    accounts(ledger, machine).close(record, wall_s=4.0)
    (row,) = ledger.rows
    return row


def test_a_local_request_costs_no_cash_and_avoids_the_cheapest_price(ledger: NotingLedger) -> None:
    """acme: 1,200 × 1 + 1,800 × 0.5 + 120 × 4 = 2,580; zoo: 3,000 × 2 + 120 × 3 = 6,360."""
    row = local_row(ledger, answered())
    assert (row.cost_micro_usd, row.price_id) == (0, None)
    assert (row.baseline_micro_usd, row.baseline_id) == (2_580, "test-2026-11-23/gpt-oss-20b")
    assert (row.uncached_tokens, row.cached_tokens, row.output_tokens) == (1_200, 1_800, 120)
    assert (row.ttft_ms, row.wall_ms, row.unix_ms) == (1_500, 4_000, NOVEMBER_MS - 4_000)
    assert (row.route, row.finish, row.reasoning_tokens) == ("local", "stop", 20)


def test_the_time_and_energy_of_a_local_request_are_estimated(ledger: NotingLedger) -> None:
    """1,200 tokens at 1,200 a second and 120 at 120: two seconds, at 60 W beyond idling."""
    row = local_row(ledger, answered())
    assert (row.gpu_ms, row.energy_mwh) == (2_000, 33)


def test_a_machine_of_which_nothing_is_known_has_no_estimate(ledger: NotingLedger) -> None:
    row = local_row(ledger, answered(), machine=None)
    assert (row.gpu_ms, row.energy_mwh) == (None, None)


def test_the_baseline_is_what_was_asked_for_where_its_price_is_known(ledger: NotingLedger) -> None:
    row = local_row(ledger, answered(asked="gpt-5-mini"))
    assert (row.baseline_id, row.baseline_micro_usd) == ("test-2026-11-23/gpt-5-mini", 990)


def test_a_foreign_name_without_a_price_is_the_model_that_answered(ledger: NotingLedger) -> None:
    assert local_row(ledger, answered(asked="gpt-4o")).baseline_micro_usd == 2_580


def test_a_model_that_nobody_sells_avoids_nothing(ledger: NotingLedger) -> None:
    record = answered(asked="gpt-5-mini")
    record.model = "nano"
    assert local_row(ledger, record).baseline_micro_usd is None


def test_what_failed_avoids_nothing_and_has_used_what_it_used(ledger: NotingLedger) -> None:
    record = answered()
    record.finish, record.error = None, "engine_unavailable"
    row = local_row(ledger, record)
    assert (row.finish, row.baseline_micro_usd, row.output_tokens) == (
        "engine_unavailable",
        None,
        120,
    )


def test_a_client_that_left_is_counted_for_what_was_generated(ledger: NotingLedger) -> None:
    record = answered()
    record.finish = "client_gone"
    assert local_row(ledger, record).baseline_micro_usd == 2_580


def test_a_request_that_never_got_a_row_computed_nothing(ledger: NotingLedger) -> None:
    record = answered()
    record.finish, record.cached_tokens, record.completion_tokens = "client_gone", None, 0
    row = local_row(ledger, record)
    assert (row.uncached_tokens, row.cached_tokens, row.output_tokens) == (0, 0, 0)
    assert (row.gpu_ms, row.baseline_micro_usd) == (0, None)


def test_a_request_that_nobody_worked_on_has_no_row(ledger: NotingLedger) -> None:
    record = answered()
    record.route = None
    accounts(ledger).close(record, wall_s=0.1)
    assert ledger.rows == []


async def reserved(
    ledger: NotingLedger, max_tokens: int = 1_000, fee: float = 0.10
) -> RequestRecord:
    """A record whose call to acme is reserved; nothing is generated yet."""
    record = RequestRecord(id="req_1", arrived_s=10.0, model="gpt-oss-20b", prompt_tokens=3_000)
    at = price(1.0, 4.0, cached_usd=0.5, fee=fee)
    await accounts(ledger).reserve(record, "acme", at, max_tokens, RICH)
    return record


async def test_the_worst_case_is_the_whole_prompt_uncached_and_all_tokens_generated(
    ledger: NotingLedger,
) -> None:
    record = await reserved(ledger)
    (reservation,) = ledger.reserved
    assert reservation.worst_micro_usd == 7_700
    assert (record.route, record.provider) == ("cloud", "acme")


async def test_a_call_is_settled_by_its_tokens(ledger: NotingLedger) -> None:
    record = await reserved(ledger)
    record.cached_tokens, record.completion_tokens, record.finish = 1_800, 120, "stop"
    row = local_row(ledger, record)
    assert row.cost_micro_usd == 2_838
    assert (row.price_id, row.provider, row.route) == ("test-2026-11-23", "acme", "cloud")
    assert (row.gpu_ms, row.energy_mwh) == (None, None)
    assert ledger.reserved == []


async def test_what_the_provider_says_counts_and_the_fee_is_on_top(ledger: NotingLedger) -> None:
    record = await reserved(ledger)
    assert record.call is not None
    record.call.said_usd, record.finish = 0.001, "stop"
    row = local_row(ledger, record)
    assert (row.cost_micro_usd, row.price_id) == (1_100, None)


async def test_a_call_whose_client_left_costs_what_was_counted(ledger: NotingLedger) -> None:
    record = await reserved(ledger, fee=0)
    record.completion_tokens, record.finish = 7, "client_gone"
    assert local_row(ledger, record).cost_micro_usd == 3_028


async def test_a_refused_call_is_released_and_the_next_attempt_is_another(
    ledger: NotingLedger,
) -> None:
    record = await reserved(ledger)
    accounts(ledger).release(record)
    assert (ledger.reserved, ledger.rows, record.route) == ([], [], None)
    await accounts(ledger).reserve(record, "zoo", price(2.0, 3.0), 10, RICH)
    record.completion_tokens, record.finish = 5, "stop"
    row = local_row(ledger, record)
    assert (row.attempt, row.provider) == (2, "zoo")


async def test_a_call_that_broke_off_is_a_row_of_its_own(ledger: NotingLedger) -> None:
    record = await reserved(ledger)
    accounts(ledger).close(record, wall_s=1.0)
    await accounts(ledger).reserve(record, "zoo", price(2.0, 3.0), 10, RICH)
    record.finish = "stop"
    accounts(ledger).close(record, wall_s=2.0)
    accounts(ledger).close(record, wall_s=3.0)
    assert [(row.attempt, row.provider, row.finish) for row in ledger.rows] == [
        (1, "acme", "unfinished"),
        (2, "zoo", "stop"),
    ]


async def test_a_call_that_the_budget_does_not_cover_changes_nothing(ledger: NotingLedger) -> None:
    record = answered()
    record.route = None
    with pytest.raises(BudgetExhausted):
        await accounts(ledger).reserve(record, "acme", price(1.0, 4.0), 10, Budget())
    assert (record.call, record.route, record.attempt) == (None, None, 1)
