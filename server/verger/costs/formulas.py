"""The arithmetic of costs: a price per point of intelligence, a request, a Mac, a rented GPU.

Used by the ledger and the commands `cost`, `usage` and `providers rank`. Pure: no files, no clock.
Money is in US dollars, as floats; what is kept in a database is whole millionths of a dollar.

Over all formulas stand two questions. What would the same tokens have cost at a provider's list
price, fee included? And from which utilisation on does a machine that is paid for whether it works
or not cost less than that? The second may have no answer: then it is said.
"""

import math
from dataclasses import dataclass

from verger.costs.prices import Price

MTOK = 1_000_000
MICROS = 1_000_000
BLEND_INPUTS = 3
"""The blended price is that of three tokens of input and one of output, as the indices have it."""
HOURS_PER_YEAR = 8_760
HOURS_PER_MONTH = HOURS_PER_YEAR / 12
OPENROUTER_FEE = 0.055
OPENROUTER_MIN_FEE_USD = 0.80


@dataclass(frozen=True, slots=True)
class Machine:
    """A Mac that serves one model, as far as money is concerned."""

    price_usd: float
    resale: float
    """What is left of the price at the end, as a fraction of it."""
    years: float
    usd_per_kwh: float
    idle_w: float
    active_w: float
    decode_tok_s: float
    """Of all running answers together."""
    prefill_tok_s: float


@dataclass(frozen=True, slots=True)
class Mix:
    """How much input comes with each token of output; what is cached costs a machine nothing."""

    uncached: float = 3.0
    cached: float = 0.0


@dataclass(frozen=True, slots=True)
class RentedGpu:
    """A GPU that is billed from its start until it has been idle for `scaledown_s`."""

    usd_per_h: float
    scaledown_s: float
    cold_start_s: float


def micro_usd(usd: float) -> int:
    """The nearest whole number of millionths."""
    return round(usd * MICROS)


def micro_usd_up(usd: float) -> int:
    """Rounded up, for what must not be understated; a float's own error does not count."""
    return math.ceil(round(usd * MICROS, 3))


def blended_usd(price: Price) -> float:
    """Per million tokens, without the fee."""
    return (BLEND_INPUTS * price.input_usd + price.output_usd) / (BLEND_INPUTS + 1)


def usd_per_point(blended: float, fee: float, index: float) -> float:
    """What one point of intelligence costs per million tokens, fee included."""
    assert index > 0
    return blended * (1 + fee) / index


def request_usd(price: Price, uncached: int, cached: int, output: int) -> float:
    """What a request costs who pays for it, fee included. Reasoning is output."""
    cached_usd = price.input_usd if price.cached_usd is None else price.cached_usd
    list_usd = uncached * price.input_usd + cached * cached_usd + output * price.output_usd
    return list_usd * (1 + price.fee) / MTOK


def openrouter_fee(top_up_usd: float) -> float:
    """The fee on buying credits, as a fraction: small purchases pay the minimum."""
    assert top_up_usd > 0
    return max(OPENROUTER_FEE * top_up_usd, OPENROUTER_MIN_FEE_USD) / top_up_usd


def amortisation_usd_per_h(machine: Machine) -> float:
    """What the machine loses in worth, busy or not."""
    return machine.price_usd * (1 - machine.resale) / (HOURS_PER_YEAR * machine.years)


def energy_usd_per_h(machine: Machine, busy: float) -> float:
    """Electricity, `busy` being the fraction of the time in which it computes."""
    watts = machine.idle_w + (machine.active_w - machine.idle_w) * busy
    return watts / 1000 * machine.usd_per_kwh


def busy_s(machine: Machine, uncached: float, output: float) -> float:
    """How long it computes so many tokens, the batch being as full as its rates assume."""
    return uncached / machine.prefill_tok_s + output / machine.decode_tok_s


def local_usd_per_mtok(machine: Machine, mix: Mix, busy: float) -> float:
    """Of output, with the input that comes with it. Rises without bound as `busy` nears 0."""
    assert 0 < busy <= 1
    output_tokens_per_h = 3600 * busy / busy_s(machine, mix.uncached, 1)
    usd_per_h = amortisation_usd_per_h(machine) + energy_usd_per_h(machine, busy)
    return usd_per_h / output_tokens_per_h * MTOK


def local_blended_usd(machine: Machine, busy: float) -> float:
    """As `blended_usd`, to stand beside the providers' prices."""
    mix = Mix(uncached=BLEND_INPUTS)
    return local_usd_per_mtok(machine, mix, busy) / (BLEND_INPUTS + 1)


def displaced_usd_per_h(price: Price, machine: Machine, mix: Mix) -> float:
    """What a provider would be paid for all that the machine computes in an hour, always busy."""
    output_tokens = 3600 / busy_s(machine, mix.uncached, 1)
    cached_usd = price.input_usd if price.cached_usd is None else price.cached_usd
    unit_usd = price.output_usd + mix.uncached * price.input_usd + mix.cached * cached_usd
    return output_tokens * unit_usd / MTOK * (1 + price.fee)


def break_even_busy(machine: Machine, mix: Mix, price: Price) -> float:
    """The utilisation from which on the machine costs less than the provider."""
    return break_even_at(machine, displaced_usd_per_h(price, machine, mix))


def break_even_at(machine: Machine, usd_per_busy_h: float) -> float:
    """The same where a busy hour is known to spare that much elsewhere.

    Above 1 it never does; infinite where a busy hour's electricity alone costs more.
    """
    fixed = amortisation_usd_per_h(machine) + energy_usd_per_h(machine, 0)
    working = energy_usd_per_h(machine, 1) - energy_usd_per_h(machine, 0)
    gain = usd_per_busy_h - working
    return fixed / gain if gain > 0 else math.inf


def rented_usd(gpu: RentedGpu, busy_h: float, starts: float) -> float:
    """A rented GPU's bill: its work, and with each start the loading and the wait for more.

    On one that nobody stops `scaledown_s` is the time until somebody does.
    """
    return gpu.usd_per_h * (busy_h + starts * (gpu.scaledown_s + gpu.cold_start_s) / 3600)
