"""Prices and machines that several tests count with."""

import datetime

from verger.costs.formulas import Machine
from verger.costs.prices import Price

MINI = Machine(
    price_usd=2_299,
    resale=0.275,
    years=3,
    usd_per_kwh=0.20,
    idle_w=5,
    active_w=65,
    decode_tok_s=120,
    prefill_tok_s=1_200,
)
"""A Mac mini with gpt-oss-20b."""
STUDIO = Machine(
    price_usd=5_099,
    resale=0.275,
    years=3,
    usd_per_kwh=0.20,
    idle_w=10,
    active_w=100,
    decode_tok_s=130,
    prefill_tok_s=900,
)
"""A Mac Studio with gpt-oss-120b, at the lower of the powers assumed."""


def price(
    input_usd: float, output_usd: float, cached_usd: float | None = None, fee: float = 0.0
) -> Price:
    """A price of today."""
    date = datetime.date(2026, 11, 23)
    return Price(input_usd, output_usd, cached_usd, fee, date, "a test", f"test-{date}")


GPT_5_MINI = price(0.25, 2.00)
