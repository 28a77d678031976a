"""Whether a Mac has paid off so far: what it avoided, less what it lost in worth and drew in power.

Called by `verger usage` with the ledger's sums. Pure. Three numbers, never one: cash that left the
house, list prices that did not have to be paid, and what remains of them.
"""

from msgspec import Struct

from verger.costs.formulas import (
    Machine,
    amortisation_usd_per_h,
    break_even_at,
    energy_usd_per_h,
)


class Balance(Struct, frozen=True):
    """In US dollars, over some hours."""

    hours: float
    amortisation_usd: float
    energy_usd: float
    """Idle power for all of the time, and what computing drew besides, as estimated."""
    net_usd: float
    """Avoided less both."""
    busy: float
    """The fraction of the time in which it computed, as estimated."""
    break_even_busy: float | None
    """From which utilisation on it would pay off, at what a busy hour avoided so far. Null where
    nothing was computed, and in JSON where it never does."""

    @property
    def is_paying_off(self) -> bool:
        """Whether anything remains."""
        return self.net_usd > 0


def balance(
    machine: Machine, hours: float, avoided_usd: float, gpu_s: float, energy_wh: float
) -> Balance:
    """`energy_wh` is what computing drew beyond idling."""
    assert hours > 0
    amortisation = amortisation_usd_per_h(machine) * hours
    idle = energy_usd_per_h(machine, 0) * hours
    energy = idle + energy_wh / 1000 * machine.usd_per_kwh
    busy_h = gpu_s / 3600
    return Balance(
        hours=hours,
        amortisation_usd=amortisation,
        energy_usd=energy,
        net_usd=avoided_usd - amortisation - energy,
        busy=busy_h / hours,
        break_even_busy=break_even_at(machine, avoided_usd / busy_h) if busy_h > 0 else None,
    )
