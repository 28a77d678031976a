"""Drives a runner by hand, without a scheduler: rows are placed, edits and plans made as told.

For tests of what the device does with an edit. Steps are collected at once unless one is launched
ahead; every sampled id is kept.
"""

from collections.abc import Sequence

import mlx.core as mx

from tests.mlx.harness import runner_of
from verger.engine.device.model import GptOss
from verger.engine.device.runner import MlxRunner
from verger.engine.places import Places
from verger.engine.steps import (
    Close,
    Cut,
    Kept,
    Move,
    Open,
    Place,
    Plan,
    Prefill,
    Running,
    Sampled,
    Stored,
)
from verger.messages import RowTokens, Sampling, Submit


class Direct:
    """A runner, the places of its rows, and what they have sampled."""

    def __init__(self, model: GptOss | MlxRunner, max_rows: int = 16) -> None:
        self.runner = model if isinstance(model, MlxRunner) else runner_of(model, max_rows)
        self.places = Places(max_rows)
        self.place_of: dict[int, Place] = {}
        self.length: dict[int, int] = {}
        self.submits: dict[int, Submit] = {}
        self.sampled: dict[int, list[Sampled]] = {}
        self.ahead = 0

    def open(
        self,
        request_id: int,
        prompt: Sequence[int],
        sources: Sequence[Stored | Running] = (),
        window_id: int | None = None,
        room: int = 64,
        submit: Submit | None = None,
    ) -> None:
        """Open a greedy row with room for its prompt and `room` tokens."""
        made = submit or Submit(
            request_id, list(prompt), room, [], Sampling(temperature=0), logprobs=0
        )
        place = self.places.take(len(prompt) + room)
        self.place_of[request_id] = place
        self.submits[request_id] = made
        self.sampled[request_id] = []
        edit = Open(made, place, tuple(sources), window_id)
        self.length[request_id] = edit.cached_tokens
        self.runner.apply(edit)

    def launch(self, plan: Plan) -> None:
        """Launch without collecting."""
        self.runner.launch(plan)
        self.ahead += 1
        for request_id in plan.decodes:
            self.length[request_id] += 1
        for prefill in plan.prefills:
            for request_id in (prefill.request_id, *prefill.forks):
                self.length[request_id] = prefill.stop

    def collect(self) -> None:
        """Collect all that was launched."""
        for _ in range(self.ahead):
            for entry in self.runner.collect():
                self.sampled[entry.request_id].append(entry)
        self.ahead = 0

    def prefill(
        self,
        request_id: int,
        stop: int | None = None,
        chunk: int = 2048,
        cuts: Sequence[Cut] = (),
        forks: Sequence[int] = (),
    ) -> None:
        """Prefill up to `stop`, or to the prompt's end, in chunks."""
        prompt_tokens = len(self.submits[request_id].prompt)
        stop = prompt_tokens if stop is None else stop
        while self.length[request_id] < stop:
            first = self.length[request_id]
            last = min(stop, first + chunk)
            here = tuple(cut for cut in cuts if first < cut.at <= last)
            started = tuple(forks) if last == prompt_tokens else ()
            self.launch(Plan((Prefill(request_id, first, last, started, here),)))
            self.collect()

    def decode(self, request_ids: Sequence[int], steps: int) -> None:
        """Decode rows together."""
        for _ in range(steps):
            self.launch(Plan(decodes=tuple(request_ids)))
            self.collect()

    def move(self, request_id: int, tokens: int) -> None:
        """Move a row to a place for `tokens` positions."""
        place = self.places.take(tokens)
        self.runner.apply(Move(request_id, place))
        self.places.release(self.place_of[request_id])
        self.place_of[request_id] = place

    def close(self, request_id: int, kept: Sequence[Kept] = (), window: Cut | None = None) -> None:
        """Close a row."""
        self.runner.apply(Close(request_id, tuple(kept), window))
        self.places.release(self.place_of.pop(request_id))
        del self.length[request_id]

    def answer(self, request_id: int) -> RowTokens:
        """What a row has sampled."""
        got = self.sampled[request_id]
        logprobs = [entry.logprob for entry in got if entry.logprob is not None]
        return RowTokens(request_id, [entry.id for entry in got], logprobs)


def settled_bytes() -> int:
    """Live arrays once nothing is pending."""
    mx.synchronize()
    return mx.get_active_memory()
