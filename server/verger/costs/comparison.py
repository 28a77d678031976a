"""This Mac beside each provider and a rented GPU, a month long: what `verger cost` says.

Pure. Every figure follows from the assumptions, which are part of the result, each with its source.
"""

import datetime
from collections.abc import Mapping, Sequence
from enum import Enum

from msgspec import Struct

from verger.costs.assumptions import AssumedGpu, AssumedMac, Assumption, listed
from verger.costs.formulas import (
    HOURS_PER_MONTH,
    Machine,
    Mix,
    amortisation_usd_per_h,
    break_even_busy,
    displaced_usd_per_h,
    energy_usd_per_h,
    local_blended_usd,
    local_usd_per_mtok,
    rented_usd,
)
from verger.costs.prices import Offer

MIX = Mix()
MIX_SOURCE = "the blend of the indices: three tokens of input, none cached, to one of output"
DAYS_PER_MONTH = HOURS_PER_MONTH / 24


class Verdict(Enum):
    """Whether the Mac costs less than what it is compared with."""

    PAYS_OFF = "pays off"
    NOT_YET = "not paying off"
    """At this utilisation."""
    NEVER = "never"
    """Not even if it were always busy."""


class LocalCost(Struct, frozen=True):
    """US dollars; a month has 730 hours."""

    amortisation_usd_per_h: float
    idle_usd_per_h: float
    busy_usd_per_h: float
    """What a busy hour takes in electricity besides."""
    usd_per_month: float
    usd_per_mtok: float
    """Of output, with the input that comes with it."""
    blended_usd: float


class ProviderCost(Struct, frozen=True):
    """What this Mac's tokens would cost there."""

    provider: str
    model: str
    usd_per_month: float
    break_even_busy: float
    """Null in JSON where it is infinite."""
    verdict: Verdict
    date: datetime.date
    source: str


class RentedCost(Struct, frozen=True):
    """A GPU by the hour: left running, and stopping by itself between uses."""

    name: str
    left_running_usd_per_month: float
    stopping_usd_per_month: float
    """Starts and waiting only: its work comes on top."""
    verdict: Verdict
    """Of this Mac beside one that stops by itself."""
    date: datetime.date
    assumptions: Mapping[str, Assumption]


class Comparison(Struct, frozen=True):
    """All of it, for text and JSON alike."""

    model: str
    machine: str
    date: datetime.date
    assumptions: Mapping[str, Assumption]
    local: LocalCost
    providers: list[ProviderCost]
    rented: list[RentedCost]


def compare(mac: AssumedMac, offers: Sequence[Offer], gpus: Sequence[AssumedGpu]) -> Comparison:
    """At the utilisation assumed. Raises ConfigError where assumptions contradict each other."""
    machine, busy = mac.assumed.machine(), mac.assumed.busy.value
    local = _local(machine, busy)
    return Comparison(
        model=mac.model,
        machine=mac.machine,
        date=mac.date,
        assumptions={**listed(mac.assumed), "input_ratio": Assumption(MIX.uncached, MIX_SOURCE)},
        local=local,
        providers=[_provider(machine, busy, offer) for offer in offers],
        rented=[_rented(gpu, local) for gpu in gpus],
    )


def _local(machine: Machine, busy: float) -> LocalCost:
    idle = energy_usd_per_h(machine, 0)
    per_h = amortisation_usd_per_h(machine) + energy_usd_per_h(machine, busy)
    return LocalCost(
        amortisation_usd_per_h=amortisation_usd_per_h(machine),
        idle_usd_per_h=idle,
        busy_usd_per_h=energy_usd_per_h(machine, 1) - idle,
        usd_per_month=per_h * HOURS_PER_MONTH,
        usd_per_mtok=local_usd_per_mtok(machine, MIX, busy),
        blended_usd=local_blended_usd(machine, busy),
    )


def _provider(machine: Machine, busy: float, offer: Offer) -> ProviderCost:
    needed = break_even_busy(machine, MIX, offer.price)
    return ProviderCost(
        provider=offer.provider,
        model=offer.model,
        usd_per_month=displaced_usd_per_h(offer.price, machine, MIX) * busy * HOURS_PER_MONTH,
        break_even_busy=needed,
        verdict=_verdict(needed, busy),
        date=offer.price.date,
        source=offer.price.source,
    )


def _rented(gpu: AssumedGpu, local: LocalCost) -> RentedCost:
    starts = gpu.assumed.starts_per_day.value * DAYS_PER_MONTH
    stopping = rented_usd(gpu.assumed.gpu(), busy_h=0, starts=starts)
    return RentedCost(
        name=gpu.name,
        left_running_usd_per_month=gpu.assumed.usd_per_h.value * HOURS_PER_MONTH,
        stopping_usd_per_month=stopping,
        verdict=Verdict.PAYS_OFF if local.usd_per_month < stopping else Verdict.NOT_YET,
        date=gpu.date,
        assumptions=listed(gpu.assumed),
    )


def _verdict(needed: float, busy: float) -> Verdict:
    if needed > 1:
        return Verdict.NEVER
    return Verdict.PAYS_OFF if busy >= needed else Verdict.NOT_YET
