"""How much of what others will soon need may be given up, and when."""

import pytest

from verger.engine.allowance import PETTY_S, PETTY_SHARE, SHARE, LossAllowance


def after(seconds: float, *, is_idle: bool = False, is_claimed: bool = True) -> LossAllowance:
    """An allowance of which somebody has waited for savings for so long."""
    allowance = LossAllowance()
    allowance.pass_time(100.0, is_idle=is_idle, is_claimed=is_claimed)
    allowance.pass_time(100.0 + seconds, is_idle=is_idle, is_claimed=is_claimed)
    return allowance


def test_small_losses_are_allowed_at_once_to_anybody() -> None:
    allowance = LossAllowance()
    assert allowance.limit_s(is_first=False) == allowance.limit_s(is_first=True) == PETTY_S
    assert not allowance.spend(PETTY_S)
    assert allowance.limit_s(is_first=True) == 0.0


def test_the_purse_for_small_losses_fills_again_and_no_more() -> None:
    allowance = after(0.0)
    allowance.spend(PETTY_S)
    allowance.pass_time(110.0, is_idle=False, is_claimed=False)
    assert allowance.limit_s(is_first=False) == pytest.approx(10 * PETTY_SHARE)
    allowance.pass_time(1e6, is_idle=False, is_claimed=False)
    assert allowance.limit_s(is_first=False) == PETTY_S


def test_the_first_who_waits_saves_a_share_of_the_time() -> None:
    allowance = after(100.0)
    assert allowance.limit_s(is_first=True) == pytest.approx(100 * SHARE)
    assert allowance.limit_s(is_first=False) == PETTY_S


def test_time_in_which_nobody_computes_counts_in_full() -> None:
    assert after(100.0, is_idle=True).limit_s(is_first=True) == pytest.approx(100)


def test_savings_are_spent_at_once_and_begin_anew() -> None:
    allowance = after(100.0)
    assert allowance.spend(PETTY_S + 1)
    assert allowance.limit_s(is_first=True) == PETTY_S
    allowance.pass_time(300.0, is_idle=False, is_claimed=True)
    assert allowance.limit_s(is_first=True) == pytest.approx(100 * SHARE)


def test_nothing_is_saved_while_nobody_waits_for_it() -> None:
    allowance = after(1000.0, is_claimed=False)
    assert allowance.limit_s(is_first=True) == PETTY_S
