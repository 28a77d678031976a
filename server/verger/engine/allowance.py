"""How much of what others will soon go on with may be given up for those who wait: pure.

Owned by the KV budget. With more conversations than the memory holds, each that comes back costs
another its prefix. If it always got it, all time would go into computing again; if never, whoever
came last would wait for the others' end. So it may cost a share of the time, and no more:

    small losses   up to PETTY_S at once, PETTY_SHARE of the time on the whole: a short question
                   does not wait for the end of long conversations
    large ones     whoever waits longest saves SHARE of the time until that covers its price, and
                   all of the time in which nobody computes

Prices are expected seconds of computing again. Must not know requests, bytes or prefixes.
"""

SHARE = 0.15
PETTY_SHARE = 0.05
PETTY_S = 1.0


class LossAllowance:
    """Seconds that may be lost; begins with a full purse for small losses."""

    def __init__(self) -> None:
        self._petty_s = PETTY_S
        self._saved_s = 0.0
        self._now_s: float | None = None

    def pass_time(self, now_s: float, *, is_idle: bool, is_claimed: bool) -> None:
        """It is `now_s`; since the last call nobody computed, or somebody waited for savings."""
        elapsed_s = 0.0 if self._now_s is None else now_s - self._now_s
        self._now_s = now_s
        self._petty_s = min(PETTY_S, self._petty_s + PETTY_SHARE * elapsed_s)
        saved_s = elapsed_s if is_idle else SHARE * elapsed_s
        self._saved_s = self._saved_s + saved_s if is_claimed else 0.0

    def limit_s(self, is_first: bool) -> float:
        """What a request may cost; the savings are for the first of those who wait for them."""
        return max(self._petty_s, self._saved_s) if is_first else self._petty_s

    def spend(self, price_s: float) -> bool:
        """Take a price that was within the limit; whether the savings went into it."""
        is_petty = price_s <= self._petty_s
        if is_petty:
            self._petty_s -= price_s
        else:
            self._saved_s = 0.0
        return not is_petty
