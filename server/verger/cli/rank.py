"""`verger providers rank`: models and providers by the price of a point of intelligence."""

from typing import Annotated

import msgspec
import typer

from verger.cli.assumed import (
    BusyOption,
    DecodeOption,
    ModelOption,
    PrefillOption,
    configured,
    required_mac,
    shipped_and_fetched,
)
from verger.costs.assumptions import AssumedMac
from verger.costs.formulas import local_blended_usd
from verger.costs.ranking import LocalOffer, Ranking
from verger.costs.ranking import rank as ranked

SCHEMA_VERSION = 1


def rank(
    index: Annotated[
        str | None, typer.Option(help="The version of the index; by default the newest.")
    ] = None,
    model: ModelOption = None,
    decode_tok_s: DecodeOption = None,
    prefill_tok_s: PrefillOption = None,
    busy: BusyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank models and providers, and this Mac, by the price of a point of intelligence."""
    flags = {"decode_tok_s": decode_tok_s, "prefill_tok_s": prefill_tok_s, "busy": busy}
    mac = required_mac(configured(flags), model)
    ranking = ranked(shipped_and_fetched(), index, _local(mac))
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, **msgspec.structs.asdict(ranking)}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
        return
    _print(ranking)


def _local(mac: AssumedMac) -> LocalOffer:
    busy = mac.assumed.busy
    return LocalOffer(
        model=mac.model,
        blended_usd=local_blended_usd(mac.assumed.machine(), busy.value),
        date=mac.date,
        source=f"{mac.machine}, computing {busy.value:.0%} of the time: see verger cost",
    )


def _print(ranking: Ranking) -> None:
    print(
        f"{'model':14} {'provider':12} {'index':>6} {'$/Mtok':>8} {'fee':>6} {'$/point':>9}  date"
    )
    for row in ranking.rows:
        print(
            f"{row.model:14} {row.provider:12} {row.index:6g} {row.blended_usd:8.3f} "
            f"{row.fee:6.1%} {row.usd_per_point:9.5f}  {row.date}"
        )
    print("\n$/Mtok: three tokens of input to one of output, without the fee; $/point includes it.")
    print(f"Index: version {ranking.index_version}, {ranking.index_source}")
    if ranking.left_out:
        print(f"Not scored in this version: {', '.join(ranking.left_out)}; try another --index.")
    for source in dict.fromkeys(f"{row.provider}: {row.source}" for row in ranking.rows):
        print(source)
