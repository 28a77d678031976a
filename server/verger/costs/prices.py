"""What a token costs and where: the price of one model at one provider.

Read by the formulas, the gateway and the commands. Must not know HTTP, or what a request is.
"""

import datetime

from msgspec import Struct


class Price(Struct, frozen=True):
    """US dollars per million tokens, on one date."""

    input_usd: float
    output_usd: float
    cached_usd: float | None
    """Of input that the provider found cached; None: it grants nothing for that."""
    fee: float
    """Of every dollar spent there, what comes on top: 0.055 for OpenRouter's credits."""
    date: datetime.date
    source: str
    snapshot_id: str
    """The file that says so, by which the ledger can be checked later."""
