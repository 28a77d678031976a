"""Agents' traces played against a server: prompt tokens computed ÷ the least possible.

Called by `cli/bench_replay.py`. All agents run at once, each in a closed loop: send, read the
stream, append the answer exactly as a client would, append the tool's result, send again; only
before another question it takes the time to read. Where
the server is our own, each scenario has a fresh one with a state folder of its own. Must not know
how the report is printed.
"""

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from verger.bench.chat import Options, Target, ask_chat
from verger.bench.children import BenchError
from verger.bench.reader import ReadError
from verger.bench.replay_counts import Counted, Outcome, Sent, scenario_report
from verger.bench.replay_report import (
    NEEDS_WORKING_SET,
    SCHEMA_VERSION,
    ReplayPlan,
    ReplayReport,
    ScenarioReport,
)
from verger.bench.second_turn import measure_second_turns
from verger.bench.served import Status, read_status, serving, settled_status
from verger.bench.trace import Step, Trace, loop_bias, make_trace
from verger.formats.conversation import Conversation, Message, Role, ToolCall

REQUEST_LIMIT_S = 600.0
READING_S = 3.0
"""What a person takes before the next question; the server may use it."""
GIB = 2**30

Notify = Callable[[str], None]


@dataclass(slots=True)
class Agent:
    """One agent, wherever in its trace it is; ends at its first failed request."""

    name: str
    key: str
    steps: Sequence[Step]
    conversation: Conversation
    call_options: Options
    answer_options: Options
    sent: list[Sent] = field(default_factory=list)
    substituted: int = 0
    failure: str | None = None
    _next: int = 0

    async def play(self, target: Target, until: int) -> None:
        """Go on up to, and without, step `until`."""
        while self._next < until and self.failure is None:
            step = self.steps[self._next]
            if self._next > 0 and not step.result:
                await asyncio.sleep(READING_S)
            self._append(*_additions(self.conversation, step))
            options = self.answer_options if step.call is None else self.call_options
            try:
                answer = await ask_chat(target, self.conversation, options, REQUEST_LIMIT_S)
            except ReadError as error:
                self.failure = str(error)
                return
            self.sent.append(Sent(self.conversation, answer))
            self._append(self._continuation(step, answer.message))
            self._next += 1

    def _continuation(self, step: Step, message: Message) -> Message:
        """What the model said, or, if that is not of the wanted kind, what it should have."""
        if bool(message.tool_calls) == (step.call is not None):
            return message
        self.substituted += 1
        if step.call is None:
            return Message(Role.ASSISTANT, "Done.")
        call = ToolCall(f"call_{self.name}_{self._next}", step.call.name, step.call.arguments)
        return Message(Role.ASSISTANT, tool_calls=(call,))

    def _append(self, *messages: Message) -> None:
        self.conversation = replace(
            self.conversation, messages=(*self.conversation.messages, *messages)
        )


async def measure(plan: ReplayPlan, notify: Notify) -> ReplayReport:
    """Run everything; `notify` is told what is being done. Raises BenchError."""
    with TemporaryDirectory(prefix="verger-bench-") as folder:
        replay = _Replay(plan, Path(folder), notify, _today())
        scenarios = [await replay.run(name) for name in plan.scenarios]
        second_turns = []
        if plan.second_turn_tokens:
            async with replay.server("second-turn", {}) as target:
                second_turns = await measure_second_turns(plan, target, notify)
        return ReplayReport(
            schema_version=SCHEMA_VERSION,
            model=plan.model,
            url=plan.running.endpoint.url if plan.running else None,
            machine=platform.platform(),
            cores=os.cpu_count() or 0,
            scale=plan.scale.name,
            seed=plan.seed,
            agents=plan.agents,
            keys=plan.keys,
            steps=plan.steps,
            working_set_bytes=replay.working_set_bytes,
            scenarios=scenarios,
            second_turns=second_turns,
        )


@dataclass(slots=True)
class _Replay:
    """The scenarios of a plan, one after the other."""

    plan: ReplayPlan
    folder: Path
    notify: Notify
    date: str
    working_set_bytes: int | None = None
    _ring_bytes: int = 0

    async def run(self, name: str) -> ScenarioReport:
        """One scenario; of `fits` the working set is remembered."""
        self.notify(f"replaying {self.plan.agents} agents: {name}")
        limit_bytes = self._limit_bytes(name)
        settings = self._settings(name, limit_bytes)
        agents, counted, started_s = self._agents(), Counted(), time.perf_counter()
        for until in self._stops(name, len(agents[0].steps)):
            async with self.server(name, settings) as target:
                before = await settled_status(target.endpoint, target.key)
                await _play(agents, target, until)
                after = await settled_status(target.endpoint, target.key)
                counted.add(before, after)
        if _today() != self.date:
            raise BenchError("it was midnight, and prompts begin with the date: run it again")
        outcome = Outcome(
            sent=[sent for agent in agents for sent in agent.sent],
            failures=[agent.failure for agent in agents if agent.failure is not None],
            substituted=sum(agent.substituted for agent in agents),
            counted=counted,
            elapsed_s=time.perf_counter() - started_s,
        )
        report = scenario_report(name, limit_bytes, outcome, self.plan.vocabulary)
        if name == "fits" and after is not None:
            self._ring_bytes = after.ring_bytes
            self.working_set_bytes = self._working_set(report.distinct_tokens, after)
        return report

    def _working_set(self, positions: int, status: Status) -> int:
        """Each distinct position once, and what it takes to go on with every agent."""
        windows = self.plan.agents * status.cache.window_bytes
        return positions * status.cache.token_bytes + windows

    @asynccontextmanager
    async def server(self, name: str, settings: Mapping[str, str]) -> AsyncIterator[Target]:
        """Our own, with a state folder that a second one of this name finds again."""
        if self.plan.running is not None:
            yield self.plan.running
            return
        assert self.plan.own is not None
        async with serving(self.plan.own, self.folder / name, settings) as endpoint:
            if await read_status(endpoint) is None:
                raise BenchError("the server does not tell its status")
            yield Target(endpoint, self.plan.model)

    def _stops(self, name: str, steps: int) -> list[int]:
        return [steps // 2, steps] if name == "restart" else [steps]

    def _limit_bytes(self, name: str) -> int | None:
        if name not in NEEDS_WORKING_SET:
            return None
        assert self.working_set_bytes is not None
        return self.working_set_bytes // 2 + self._ring_bytes

    def _settings(self, name: str, limit_bytes: int | None) -> dict[str, str]:
        settings = {}
        if limit_bytes is not None:
            settings["VERGER_ENGINE_KV_GIB"] = f"{limit_bytes / GIB:.9f}"
        if name == "half":
            settings["VERGER_ENGINE_DISK_GIB"] = "0"
        return settings

    def _agents(self) -> list[Agent]:
        plan = self.plan
        trace = make_trace(plan.seed, plan.agents, plan.steps, plan.scale, plan.vocabulary)
        bias = loop_bias(plan.vocabulary) if plan.has_models_vocabulary else {}
        tokens = plan.scale.answer_tokens
        return [
            Agent(
                name=str(index),
                key=self._key(index),
                steps=steps,
                conversation=_beginning(trace, self.date),
                call_options=Options(tokens, bias),
                answer_options=Options(tokens),
            )
            for index, steps in enumerate(trace.agents)
        ]

    def _key(self, index: int) -> str:
        """A server that was given asks for the key that was given, if for any."""
        running = self.plan.running
        return running.key if running and running.key else f"agent-{index % self.plan.keys}"


async def _play(agents: Sequence[Agent], target: Target, until: int) -> None:
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            mine = Target(target.endpoint, target.model, agent.key)
            group.create_task(agent.play(mine, until), name=f"agent {agent.name}")


def _beginning(trace: Trace, date: str) -> Conversation:
    system = Message(Role.SYSTEM, trace.system)
    return Conversation((system,), trace.tools, trace.effort, date)


def _additions(conversation: Conversation, step: Step) -> list[Message]:
    """The results of the last answer's calls, then what the user says."""
    added: list[Message] = []
    if step.result:
        calls = conversation.messages[-1].tool_calls
        # A model may have made more calls than it was asked for: all are answered.
        added = [Message(Role.TOOL, step.result, tool_call_id=call.id) for call in calls]
    if step.user:
        added.append(Message(Role.USER, step.user))
    return added


def _today() -> str:
    """As the server dates a conversation that it sees for the first time."""
    return datetime.now().astimezone().date().isoformat()
