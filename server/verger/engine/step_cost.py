"""What a step takes: fixed + per token + per attended position, fitted to the steps that were seen.

Used by the pacer, which sizes prefill chunks with it. Must not know a clock, rows or chunk rules.

On real hardware the fixed part is mostly reading the weights of all experts, which only a step with
a prefill chunk does; so only such steps belong here. Others are cheaper and would pull it down.

Chunks of one size cannot tell the fixed part from the rest. So the last steps of every size class
are kept, be they old, and what they leave open is taken from a typical machine's proportions. When
the machine slows down or speeds up as a whole, the old ones are rescaled instead of forgotten.
The fit is least squares of relative errors with Huber weights (Huber, 1964), never negative.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import median

from verger.engine.steps import Work

CLASS_STEPS = 12
"""Steps kept of a size class, which is a power of two of tokens."""
RECENT_STEPS = 5
"""When so many in a row are off by SPEED_CHANGE, the whole machine has changed its speed."""
KNOWN_STEPS = 3
"""Seen of a size class before a step of it can tell: others may only be unlike the rest."""
SPEED_CHANGE = 1.33
"""Smaller changes come with newer steps, which count more."""
MAX_SPEED_CHANGE = 3.0
"""No machine changes its speed by more: the fit is wrong then, about other steps than these."""
AGE_STEPS = 12
"""A step so old counts half; one much older still tells what the newer ones leave open."""
PRIOR_STEPS = 0.05
"""The weight of a typical machine's proportions, in steps."""
HUBER_ERROR = 0.2
"""Relative error from which on a step counts less: it may have been an accident."""
FIT_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step, by what it computes."""

    fixed_s: float
    token_s: float
    attended_s: float

    def seconds(self, work: Work) -> float:
        """What a step with this work is expected to take."""
        return sum(self.parts(work))

    def parts(self, work: Work) -> tuple[float, float, float]:
        """The same, part by part."""
        return self.fixed_s, self.token_s * work.tokens, self.attended_s * work.attended

    def scaled(self, factors: list[float]) -> "StepCost":
        """Each part times its factor."""
        fixed, token, attended = factors
        return StepCost(self.fixed_s * fixed, self.token_s * token, self.attended_s * attended)


PRIOR = StepCost(fixed_s=0.1, token_s=0.001, attended_s=3e-8)
"""A typical machine; only the proportions survive the first step."""


@dataclass(slots=True, eq=False)
class ObservedStep:
    """A step that was seen; `expected_s` is what the fit said before, `number` counts steps."""

    work: Work
    seconds: float
    expected_s: float
    number: int


@dataclass(slots=True)
class StepCostFit:
    """Learns a StepCost from steps as they come."""

    cost: StepCost = PRIOR
    _observed: int = 0
    _classes: dict[int, deque[ObservedStep]] = field(default_factory=dict)
    _recent: deque[ObservedStep] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))

    @property
    def steps(self) -> list[ObservedStep]:
        """What the fit rests on."""
        return [step for kept in self._classes.values() for step in kept]

    def observe(self, work: Work, seconds: float) -> None:
        """Take in one step."""
        assert min(work.tokens, work.attended, seconds) > 0
        self._observed += 1
        step = ObservedStep(work, seconds, self.cost.seconds(work), self._observed)
        kept = self._classes.setdefault(work.tokens.bit_length(), deque(maxlen=CLASS_STEPS))
        if len(kept) >= KNOWN_STEPS:
            self._recent.append(step)
        kept.append(step)
        self._follow_speed()
        self.cost = fit(self.steps)

    def _follow_speed(self) -> None:
        if len(self._recent) < RECENT_STEPS:
            return
        changes = [step.seconds / step.expected_s for step in self._recent]
        if min(changes) <= SPEED_CHANGE and 1 / SPEED_CHANGE <= max(changes):
            return
        if not 1 / MAX_SPEED_CHANGE <= median(changes) <= MAX_SPEED_CHANGE:
            return
        for step in self.steps:
            if step not in self._recent:
                step.seconds *= median(changes)
        self._recent.clear()


def fit(steps: Collection[ObservedStep]) -> StepCost:
    """The cost that explains these steps; at least one."""
    speed = median(step.seconds / PRIOR.seconds(step.work) for step in steps)
    prior = cost = PRIOR.scaled([speed] * 3)
    newest = max(step.number for step in steps)
    for _ in range(FIT_ROUNDS):
        cost = _refit(steps, newest, cost, prior)
    return cost


def _refit(
    steps: Collection[ObservedStep], newest: int, last: StepCost, prior: StepCost
) -> StepCost:
    """One round of reweighted least squares; the unknowns are factors of the prior's parts."""
    matrix = [[PRIOR_STEPS if row == column else 0.0 for column in range(3)] for row in range(3)]
    vector = [PRIOR_STEPS] * 3
    for step in steps:
        expected_s = last.seconds(step.work)
        # Relative to the larger of both, which is never near zero.
        scale_s = max(step.seconds, expected_s)
        error = abs(step.seconds - expected_s) / scale_s
        age = (newest - step.number) / AGE_STEPS
        weight = HUBER_ERROR / max(HUBER_ERROR, error) / (1 + age)
        parts = [part / scale_s for part in prior.parts(step.work)]
        for row in range(3):
            vector[row] += weight * parts[row] * step.seconds / scale_s
            for column in range(3):
                matrix[row][column] += weight * parts[row] * parts[column]
    return prior.scaled(_solve_nonnegative(matrix, vector))


def _solve_nonnegative(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """Drops the most negative unknown until there is none."""
    kept = list(range(len(vector)))
    while True:
        rows = [[matrix[row][column] for column in kept] + [vector[row]] for row in kept]
        solution = dict(zip(kept, _solve(rows), strict=True))
        worst = min(kept, key=solution.__getitem__)
        if solution[worst] >= 0:
            return [solution.get(index, 0.0) for index in range(len(vector))]
        kept.remove(worst)


def _solve(rows: list[list[float]]) -> list[float]:
    """Gauss-Jordan elimination; the prior keeps every pivot above zero."""
    for pivot, pivot_row in enumerate(rows):
        rows[pivot] = pivot_row = [value / pivot_row[pivot] for value in pivot_row]
        for other, row in enumerate(rows):
            if other != pivot:
                rows[other] = [
                    value - row[pivot] * scaled
                    for value, scaled in zip(row, pivot_row, strict=True)
                ]
    return [row[-1] for row in rows]
