"""More conversations than the memory holds: they take turns, and little is computed twice."""

from functools import cache

import pytest

from tests.agents_in_turn import Office

AGENTS = 8
STEPS = 10
AMPLE = 1 << 20


@cache
def working_set() -> int:
    """Positions that all conversations take at their end, each once."""
    office = Office(AGENTS, STEPS, AMPLE).play()
    assert office.computed_per_least == 1.0
    return office.positions


@pytest.mark.slow
@pytest.mark.parametrize(("share", "most"), [(0.5, 1.7), (0.75, 1.7), (1 / 1.15, 1.5)])
def test_without_a_disk_some_are_finished_before_others_go_on(share: float, most: float) -> None:
    office = Office(AGENTS, STEPS, int(working_set() * share)).play()
    assert office.computed_per_least <= most
    assert office.engine.scheduler.cache_stats().evictions > 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_with_a_disk_hardly_anything_is_computed_twice(share: float) -> None:
    office = Office(AGENTS, STEPS, int(working_set() * share), has_disk=True).play()
    assert office.computed_per_least <= 1.05
    assert office.engine.scheduler.cache_stats().evictions > 0
