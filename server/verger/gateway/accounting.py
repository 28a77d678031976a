"""From what is known of a request at its end to its row of the ledger; and what a call may cost.

`edge` closes every request here. An endpoint that asks a cloud provider reserves first:

    await accounts.reserve(record, provider, price, max_tokens, budget)   402 or 503 if it may not
    … the call: the record gets its tokens, and record.call.said_usd if the provider says a cost …
    the edge settles it; before another provider is asked, accounts.release, if the call surely
    cost nothing, else accounts.close

Must not know SQL, HTTP or the engine. Costs are rounded up, list costs avoided to the nearest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from verger.costs.formulas import MICROS, Machine, busy_s, micro_usd, micro_usd_up, request_usd
from verger.costs.prices import Offer, Price, Snapshot
from verger.gateway.edge import CloudCall, RequestRecord
from verger.gateway.ledger import Ledger
from verger.gateway.ledger_store import CLOUD, LOCAL, Budget, LedgerRow, Reservation


class _Tokens(NamedTuple):
    """What a request used."""

    uncached: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class Accounts:
    """One per process: the ledger, and what its rows are counted by."""

    ledger: Ledger
    model_id: str
    prices: Snapshot
    machine: Machine | None
    """None: what this machine's time is worth is not known."""
    unix_s: Callable[[], float]

    async def reserve(
        self,
        record: RequestRecord,
        provider: str,
        price: Price,
        max_tokens: int,
        budget: Budget,
        model: str | None = None,
    ) -> None:
        """Before a call: take its worst case out of the budgets, the whole prompt uncached and
        every token generated. `model` is what will answer, where the request calls it by another
        name. Raises BudgetExhausted or LedgerUnavailable."""
        assert record.prompt_tokens is not None
        assert record.call is None
        worst_usd = request_usd(price, record.prompt_tokens, 0, max_tokens)
        reservation = Reservation(
            request_id=record.id,
            attempt=record.attempt,
            unix_ms=round(self.unix_s() * 1000),
            key_id=record.key,
            model=model or record.model or self.model_id,
            provider=provider,
            worst_micro_usd=micro_usd_up(worst_usd),
        )
        await self.ledger.reserve(reservation, budget)
        record.call = CloudCall(reservation, price)
        record.route, record.provider = CLOUD, provider

    def release(self, record: RequestRecord) -> None:
        """The call was not made, or was refused: it cost nothing."""
        assert record.call is not None
        self.ledger.release(record.call.reservation)
        _next_attempt(record)

    def close(self, record: RequestRecord, wall_s: float) -> None:
        """At the end of a request, however it ended, or of a call that may have cost something.

        One that nobody has worked on has no row.
        """
        if record.route is None:
            return
        row = self._row(record, wall_s)
        if record.call is None:
            self.ledger.record(row)
        else:
            self.ledger.settle(record.call.reservation, row)
        _next_attempt(record)

    def cost_usd(self, record: RequestRecord) -> float | None:
        """What the ledger will have of the call that is under way, as far as it is known now."""
        if record.call is None:
            return None
        return _cost(record.call, _tokens(record))[0] / MICROS

    def _row(self, record: RequestRecord, wall_s: float) -> LedgerRow:
        tokens = _tokens(record)
        gpu_s = self._gpu_s(record, tokens)
        cost_micro_usd, price_id = _cost(record.call, tokens)
        baseline = self._baseline(record, tokens)
        ttft_s = None if record.first_delta_s is None else record.first_delta_s - record.arrived_s
        return LedgerRow(
            request_id=record.id,
            attempt=record.attempt,
            unix_ms=round((self.unix_s() - wall_s) * 1000),
            key_id=record.key,
            model_asked=record.model_asked,
            model=self._model(record),
            route=record.route or LOCAL,
            provider=record.provider,
            reason=record.reason,
            finish=record.finish or record.error or "unfinished",
            uncached_tokens=tokens.uncached,
            cached_tokens=tokens.cached,
            output_tokens=tokens.output,
            reasoning_tokens=record.reasoning_tokens or 0,
            ttft_ms=_ms(ttft_s),
            wall_ms=round(wall_s * 1000),
            gpu_ms=_ms(gpu_s),
            energy_mwh=self._energy_mwh(gpu_s),
            cost_micro_usd=cost_micro_usd,
            price_id=price_id,
            baseline_id=None if baseline is None else _list_id(baseline),
            baseline_micro_usd=(
                None if baseline is None else micro_usd(request_usd(baseline.price, *tokens))
            ),
        )

    def _model(self, record: RequestRecord) -> str:
        if record.call is not None:
            return record.call.reservation.model
        return record.model or self.model_id

    def _gpu_s(self, record: RequestRecord, tokens: _Tokens) -> float | None:
        """Estimated: its share of a full batch, at the rates that the machine is said to have."""
        if self.machine is None or record.route != LOCAL:
            return None
        return busy_s(self.machine, tokens.uncached, tokens.output)

    def _energy_mwh(self, gpu_s: float | None) -> int | None:
        """What the machine draws for it beyond idling."""
        if self.machine is None or gpu_s is None:
            return None
        return round((self.machine.active_w - self.machine.idle_w) * gpu_s / 3.6)

    def _baseline(self, record: RequestRecord, tokens: _Tokens) -> Offer | None:
        """Whose list price the request would have cost elsewhere: the model that was asked for, if
        anybody's price of it is known, else the one that answered, where it is cheapest.

        What nobody sells, such as the embedded model, and what failed avoids nobody's price.
        """
        model = self._model(record)
        offers = [offer for offer in self.prices.offers if offer.model == model]
        asked = [offer for offer in self.prices.offers if offer.model == record.model_asked]
        if record.error is not None or not offers or not any(tokens):
            return None
        return min(asked or offers, key=lambda offer: request_usd(offer.price, *tokens))


def _tokens(record: RequestRecord) -> _Tokens:
    """A local request that never got a row computed nothing of its prompt."""
    prompt, cached = record.prompt_tokens or 0, record.cached_tokens or 0
    if record.route == LOCAL and record.cached_tokens is None:
        prompt = 0
    return _Tokens(max(0, prompt - cached), cached, record.completion_tokens or 0)


def _cost(call: CloudCall | None, tokens: _Tokens) -> tuple[int, str | None]:
    """Cash, and the file that it was counted by: none where the provider itself said it."""
    if call is None:
        return 0, None
    if call.said_usd is not None:
        return micro_usd_up(call.said_usd * (1 + call.price.fee)), None
    return micro_usd_up(request_usd(call.price, *tokens)), call.price.snapshot_id


def _next_attempt(record: RequestRecord) -> None:
    record.call = record.route = record.provider = None
    record.attempt += 1


def _list_id(offer: Offer) -> str:
    return f"{offer.price.snapshot_id}/{offer.model}"


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
