"""When an engine that ended is started again: soon, or, if it ends again and again, seldom.

Asked by `engine_supervisor.py` at each death. Pure; must not know processes or a clock.

    usual ──── CRASHES deaths within WINDOW_S, ───► safe mode: one probe after each of PROBES_S
      ▲        or a hopeless one                       │
      └──────── ready for HEALTHY_S without a break ◄──┘
"""

from collections import deque

CRASHES = 3
WINDOW_S = 600.0
PROBES_S = (600.0, 1_200.0, 2_400.0, 3_600.0)
"""Until the next probe: the first, the second, …; the last one is repeated."""
HEALTHY_S = 600.0


class RestartPolicy:
    """Of one engine, over all its lives."""

    def __init__(self, first_delay_s: float) -> None:
        self.is_safe = False
        """Since the last death an engine is only probed; over once one has proved its health."""
        self._first_delay_s = first_delay_s
        self._deaths_s: deque[float] = deque(maxlen=CRASHES)
        self._probes = 0

    def delay_s(self, died_s: float, ready_s: float, *, is_hopeless: bool = False) -> float:
        """An engine has died that had been ready for so long: how long to wait before the next.

        Hopeless: it says itself that the next one would fare the same.
        """
        if ready_s >= HEALTHY_S:
            self.is_safe = False
            self._deaths_s.clear()
            self._probes = 0
        self._deaths_s.append(died_s)
        is_often = len(self._deaths_s) == CRASHES and died_s - self._deaths_s[0] <= WINDOW_S
        if is_hopeless or is_often:
            self.is_safe = True
        if not self.is_safe:
            return self._first_delay_s * 2.0 ** (len(self._deaths_s) - 1)
        self._probes += 1
        return PROBES_S[min(self._probes, len(PROBES_S)) - 1]
