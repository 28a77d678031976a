"""`verger cost`: this Mac beside each provider and a rented GPU; every assumption with its source.

It can say that the Mac does not pay off, and often has to.
"""

import math
from typing import Annotated

import msgspec
import typer

from verger import paths
from verger.cli.assumed import (
    ActiveOption,
    BusyOption,
    DecodeOption,
    IdleOption,
    KwhOption,
    MacPriceOption,
    ModelOption,
    PrefillOption,
    ResaleOption,
    YearsOption,
    configured,
    required_mac,
    shipped_and_fetched,
)
from verger.costs.assumptions import load_gpus
from verger.costs.comparison import Comparison, ProviderCost, RentedCost, Verdict, compare

SCHEMA_VERSION = 1


def cost(
    model: ModelOption = None,
    mac_price: MacPriceOption = None,
    years: YearsOption = None,
    resale: ResaleOption = None,
    kwh: KwhOption = None,
    idle_w: IdleOption = None,
    active_w: ActiveOption = None,
    decode_tok_s: DecodeOption = None,
    prefill_tok_s: PrefillOption = None,
    busy: BusyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare this Mac with the providers and a rented GPU; say whether it pays off."""
    flags = {
        "mac_price": mac_price,
        "years": years,
        "resale": resale,
        "kwh": kwh,
        "idle_w": idle_w,
        "active_w": active_w,
        "decode_tok_s": decode_tok_s,
        "prefill_tok_s": prefill_tok_s,
        "busy": busy,
    }
    mac = required_mac(configured(flags), model)
    comparison = compare(mac, shipped_and_fetched().offers, load_gpus(paths.catalogue_dir()))
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, **msgspec.structs.asdict(comparison)}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
        return
    _print_local(comparison)
    _print_providers(comparison.providers)
    for gpu in comparison.rented:
        _print_rented(gpu)
    _print_assumptions(comparison)


def _print_local(comparison: Comparison) -> None:
    local, busy = comparison.local, comparison.assumptions["busy"].value
    machine, model = comparison.machine, comparison.model
    print(f"This Mac ({machine}) with {model}, computing {busy:.0%} of the time:")
    print(f"  ${local.usd_per_month:.2f} a month")
    print(f"  ${local.amortisation_usd_per_h:.4f} an hour for the machine,")
    print(f"  ${local.idle_usd_per_h:.4f} for its idle power,")
    print(f"  ${local.busy_usd_per_h:.4f} more while it computes")
    print(f"  ${local.usd_per_mtok:.3f} per million tokens of output and the input they need;")
    print(f"  ${local.blended_usd:.3f} blended\n")


def _print_providers(providers: list[ProviderCost]) -> None:
    print("The same tokens elsewhere, fees included:")
    print(f"  {'provider':12} {'model':14} {'$/month':>8}  {'break-even':>12}  {'':14}  prices of")
    for row in providers:
        print(
            f"  {row.provider:12} {row.model:14} {row.usd_per_month:8.2f}  "
            f"{_busy(row.break_even_busy):>12}  {row.verdict.value:14}  {row.date}"
        )
    if all(row.verdict is not Verdict.PAYS_OFF for row in providers):
        print("Not paying off: at this utilisation every provider is cheaper than the Mac.")
    print("Break-even is the share of the time, nights included, from which on the Mac is cheaper.")
    print("Another model is another quality: see verger providers rank.\n")


def _print_rented(gpu: RentedCost) -> None:
    starts = gpu.assumptions["starts_per_day"].value
    print(f"{gpu.name} (prices of {gpu.date}), billed until it is stopped:")
    print(f"  ${gpu.left_running_usd_per_month:,.2f} a month if nobody stops it")
    print(
        f"  ${gpu.stopping_usd_per_month:,.2f} a month for {starts:g} starts a day and the waiting"
    )
    print(f"  after each, before it has computed anything: the Mac {_beside(gpu)}\n")


def _print_assumptions(comparison: Comparison) -> None:
    print("Assumptions (flags, or [costs] in config.toml, replace them):")
    assumptions = dict(comparison.assumptions)
    for gpu in comparison.rented:
        assumptions |= {f"{gpu.name}: {name}": value for name, value in gpu.assumptions.items()}
    width = max(map(len, assumptions))
    for name, assumption in assumptions.items():
        print(f"  {name:{width}}  {assumption.value:>8g}  {assumption.source}")
    for source in dict.fromkeys(f"{row.provider}: {row.source}" for row in comparison.providers):
        print(f"  {source}")


def _busy(needed: float) -> str:
    if math.isinf(needed):
        return "never"
    return f"never ({needed:.0%})" if needed > 1 else f"{needed:.0%} busy"


def _beside(gpu: RentedCost) -> str:
    return (
        "pays off beside that"
        if gpu.verdict is Verdict.PAYS_OFF
        else "does not pay off beside that"
    )
