"""Agents in tool loops on the real scheduler, in simulated time; the runner checks every position.

Each agent sends its whole conversation, gets a call, appends a result and sends again at once. A
token of prompt takes a millisecond, a step five besides.
"""

from dataclasses import dataclass
from random import Random

from tests.fakes import ECHO_KV
from tests.schedulers import Engine, make_scheduler
from verger.engine.steps import KVGeometry, Step
from verger.messages import Finished, Submit

CALL_ID = 5
SYSTEM_TOKENS = 300
CALL_TOKENS = 50
RESULT_TOKENS = (60, 150)
STEP_S = 0.005
MAX_STEPS = 100_000
KV = KVGeometry(ECHO_KV.token_bytes, ECHO_KV.sliding_token_bytes, ECHO_KV.window, max_rows=8)


@dataclass(slots=True)
class Agent:
    """`answered` of its requests are."""

    prompt: list[int]
    request_id: int | None = None
    answered: int = 0
    sent_s: float = 0.0


class Office:
    """Some agents and an engine with memory for so many positions in rows and spans."""

    def __init__(self, agents: int, steps: int, tokens: int, *, has_disk: bool = False) -> None:
        self.random = Random(7)
        scheduler = make_scheduler(
            max_rows=KV.max_rows,
            max_waiting=agents,
            alone=2_048,
            beside=512,
            context_tokens=20_000,
            kv=KV,
            limit_bytes=KV.ring_bytes + tokens * KV.token_bytes,
        )
        self.engine = Engine(scheduler, STEP_S, has_disk=has_disk)
        self.steps = steps
        # The runner repeats what a prompt begins with, so everybody's answer is this call.
        call = [*self.ids(CALL_TOKENS - 1), CALL_ID]
        system = call + self.ids(SYSTEM_TOKENS - CALL_TOKENS)
        self.agents = [Agent(system + self.ids(20)) for _ in range(agents)]
        self.call = call
        self.least_tokens = SYSTEM_TOKENS + agents * 20
        self.waits_s: list[float] = []
        """From sending to the end of each answer."""

    @property
    def positions(self) -> int:
        """Of all conversations, each once."""
        own = sum(len(agent.prompt) - SYSTEM_TOKENS for agent in self.agents)
        return SYSTEM_TOKENS + own

    @property
    def computed_per_least(self) -> float:
        """Prompt tokens computed ÷ the least possible."""
        return self.engine.scheduler.prefill_tokens / self.least_tokens

    def ids(self, count: int) -> list[int]:
        return [self.random.randrange(10, 1_000) for _ in range(count)]

    def play(self) -> "Office":
        """Until every agent has made all its calls."""
        for _ in range(MAX_STEPS):
            if all(agent.answered == self.steps for agent in self.agents):
                return self
            self.send()
            step = self.engine.step()
            self.engine.now_s += prefill_s(step)
            self.engine.disk.settle(self.engine.now_s)
            self.receive()
        raise AssertionError("wedged")

    def send(self) -> None:
        for number, agent in enumerate(self.agents):
            if agent.request_id is None and agent.answered < self.steps:
                agent.request_id = 1 + number + len(self.agents) * agent.answered
                agent.sent_s = self.engine.now_s
                boundaries = [SYSTEM_TOKENS, SYSTEM_TOKENS + 20]
                self.engine.submit(
                    Submit(
                        agent.request_id,
                        list(agent.prompt),
                        1_000,
                        [CALL_ID],
                        kept_stop_ids=[CALL_ID],
                        boundaries=boundaries,
                    )
                )

    def receive(self) -> None:
        frames, self.engine.frames = self.engine.frames, []
        ended = {frame.request_id for frame in frames if isinstance(frame, Finished)}
        for agent in self.agents:
            if agent.request_id in ended:
                self.waits_s.append(self.engine.now_s - agent.sent_s)
                agent.request_id = None
                agent.answered += 1
                agent.prompt += self.call
                if agent.answered < self.steps:
                    result = self.ids(self.random.randint(*RESULT_TOKENS))
                    agent.prompt += result
                    self.least_tokens += len(result)


def prefill_s(step: Step) -> float:
    """What the prompts of a step take."""
    return sum(prefill.stop - prefill.start for prefill in step.plan.prefills) / 1000
