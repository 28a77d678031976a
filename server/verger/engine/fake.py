"""A runner that plays a script instead of a model, so that clients can meet any model behaviour.

Used by `__main__` when the gateway was started with the hidden flag `--fake SCRIPT`, and by tests.
It computes nothing, but checks every call against the contract in `steps.py`, the KV's part of it
in `fake_kv.py`. The model folder is only asked for its tokenizer.json. Must not know sockets or
the scheduler.

The script is a TOML file (everything but `text` has a default):

    context_tokens = 131072       # the longest sequence it accepts
    free_bytes = 1073741824       # what the machine can spare for KV
    start = "ok"                  # or "fail": loading ends with an error a restart may cure;
                                  # "die": the process is killed while loading; "hang": forever
    [[reply]]                     # the first reply whose pattern is found speaks
    match = 'weather in (\\w+)'    # regular expression, searched in the decoded prompt, in which
                                  # special tokens stand as <|start|> and so on; "" fits all
    text = '<|channel|>final<|message|>Sunny in {1}.<|return|>'
                                  # Harmony text, specials written out; {1} is the pattern's group;
                                  # after its end the fake says <|return|>
    step_s = 0.01                 # how long each token takes
    prefill_s = 0.5               # how long each chunk of the prompt takes
    fail_at = 3                   # at this token (0: the first): an error, the engine exits
    die_at = 3                    #   the process is killed, as by `kill -9`
    hang_at = 3                   #   the step never ends
"""

import os
import re
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from verger.engine.fake_kv import FakeKV
from verger.engine.steps import (
    MAX_LAUNCHED_STEPS,
    Close,
    Edit,
    KVGeometry,
    Memory,
    Open,
    Plan,
    Running,
    Sampled,
    Stored,
)
from verger.errors import ConfigError, ModelFolderError
from verger.messages import Logprob, Submit

HANG_S = 10 * 24 * 3600.0
MAX_ROWS = 16
TOKEN_BYTES = 1024
SLIDING_TOKEN_BYTES = 256
WINDOW = 128
RETURN = "<|return|>"
NO_REPLY = "<|channel|>final<|message|>No reply of the script fits this prompt."


class Start(Enum):
    """How loading goes."""

    OK = "ok"
    FAIL = "fail"
    DIE = "die"
    HANG = "hang"


class Reply(Struct, frozen=True, forbid_unknown_fields=True):
    """One scripted answer; the module docstring explains the fields."""

    text: str
    match: str = ""
    step_s: float = 0.0
    prefill_s: float = 0.0
    fail_at: int | None = None
    die_at: int | None = None
    hang_at: int | None = None


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """What the fake does."""

    reply: list[Reply] = []
    start: Start = Start.OK
    context_tokens: int = 131_072
    free_bytes: int = 1 << 30


class ScriptedFailure(Exception):
    """The error that the script asked for."""


@dataclass(slots=True)
class Row:
    """One open request: `ids` is what the script lets it say, `position` how far it is."""

    submit: Submit
    reply: Reply
    ids: list[int]
    position: int

    def id_at(self, position: int) -> int:
        """What it says there; after the end of the reply it repeats the last id."""
        return self.ids[min(position, len(self.ids) - 1)]


@dataclass(frozen=True, slots=True)
class Launched:
    """A launched step: which rows it samples, where in their replies, and how long it takes."""

    samples: tuple[tuple[Row, int], ...]
    seconds: float


def kill_self() -> None:
    """Die as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


class FakeRunner:
    """Implements `steps.Runner`; all waiting goes through `sleep`, dying through `die`."""

    def __init__(
        self,
        script: Script,
        tokenizer: Tokenizer,
        max_rows: int = MAX_ROWS,
        sleep: Callable[[float], None] = time.sleep,
        die: Callable[[], None] = kill_self,
    ) -> None:
        self.context_tokens = script.context_tokens
        self.vocabulary_size = max(tokenizer.get_vocab().values()) + 1
        self.device = "fake"
        self.step_s = 0.0
        self.kv = KVGeometry(TOKEN_BYTES, SLIDING_TOKEN_BYTES, WINDOW, max_rows)
        self.free_bytes = script.free_bytes
        self.fingerprint = "fake"
        self._script = script
        self._tokenizer = tokenizer
        self._sleep = sleep
        self._die = die
        self._held = FakeKV(self.kv)
        self._rows: dict[int, Row] = {}
        self._launched: deque[Launched] = deque()
        self._peak_bytes = 0
        self._play_start(script.start)

    @classmethod
    def load(cls, script_path: Path, model_path: Path, max_rows: int = MAX_ROWS) -> "FakeRunner":
        """Read the script and the model folder's tokenizer."""
        try:
            script = msgspec.toml.decode(script_path.read_bytes(), type=Script)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{script_path}: {error}") from error
        tokenizer_path = model_path / "tokenizer.json"
        if not tokenizer_path.is_file():
            raise ModelFolderError(f"{tokenizer_path} is missing.")
        return cls(script, Tokenizer.from_file(str(tokenizer_path)), max_rows)

    def apply(self, edit: Edit) -> None:
        """Carry out one edit; a launched step keeps its own reference to a row that closes."""
        self._held.apply(edit)
        match edit:
            case Open(submit):
                self._rows[submit.request_id] = self._cast(submit)
            case Close(request_id):
                del self._rows[request_id]

    def launch(self, plan: Plan) -> None:
        """Advance the rows of the plan; what it samples is known now and told in `collect`."""
        assert len(self._launched) < MAX_LAUNCHED_STEPS
        assert not plan.is_empty
        assert max(Counter(_rows_of(plan)).values()) == 1, "a row has one part in a step"
        samples: list[tuple[Row, int]] = []
        seconds = [0.0]
        for prefill in plan.prefills:
            started = self._held.compute(prefill)
            seconds.append(self._rows[prefill.request_id].reply.prefill_s)
            samples += [_advance(self._rows[request_id]) for request_id in started]
        for request_id in plan.decodes:
            assert request_id in self._rows, f"request {request_id} has no row"
            row = self._rows[request_id]
            self._held.feed(request_id, row.id_at(row.position - 1))
            assert self._held.computed_tokens(request_id) < self.context_tokens
            seconds.append(row.reply.step_s)
            samples.append(_advance(row))
        self._peak_bytes = max(self._peak_bytes, self._held.kv_bytes)
        self._launched.append(Launched(tuple(samples), max(seconds)))

    def collect(self) -> list[Sampled]:
        """Take as long as the slowest row, and suffer what the script has for each."""
        assert self._launched, "nothing was launched"
        launched = self._launched.popleft()
        self.step_s = launched.seconds
        if launched.seconds > 0:
            self._sleep(launched.seconds)
        return [self._sample(row, position) for row, position in launched.samples]

    def export(self, source: Stored | Running, window_id: int | None) -> bytes:
        """Made-up bytes, as many as the geometry says, which only fit where they came from."""
        return self._held.export(source, window_id)

    def memory(self) -> Memory:
        """A made-up but consistent account."""
        kv_bytes = self._held.kv_bytes
        self._peak_bytes = max(self._peak_bytes, kv_bytes)
        return Memory(kv_bytes=kv_bytes, active_bytes=kv_bytes, peak_bytes=self._peak_bytes)

    def _cast(self, submit: Submit) -> Row:
        """Choose the reply; a resumed request goes on where its reply was interrupted."""
        asked = submit.prompt[: len(submit.prompt) - submit.resumed_tokens]
        reply = self._choose(self._tokenizer.decode(asked, skip_special_tokens=False))
        ids = self._tokenizer.encode(reply.text + RETURN, add_special_tokens=False).ids
        return Row(submit, reply, ids, position=submit.resumed_tokens)

    def _play_start(self, start: Start) -> None:
        match start:
            case Start.OK:
                return
            case Start.FAIL:
                raise ScriptedFailure("the script lets loading fail")
            case Start.DIE:
                self._die()
            case Start.HANG:
                self._sleep(HANG_S)

    def _choose(self, prompt: str) -> Reply:
        for reply in self._script.reply:
            found = re.search(reply.match, prompt)
            if found is not None:
                return msgspec.structs.replace(reply, text=_fill_in(reply.text, found))
        return Reply(text=NO_REPLY)

    def _sample(self, row: Row, position: int) -> Sampled:
        reply = row.reply
        if position == reply.fail_at:
            raise ScriptedFailure(f"the script fails at token {position}")
        if position == reply.die_at:
            self._die()
        if position == reply.hang_at:
            self._sleep(HANG_S)
        token_id = row.id_at(position)
        return Sampled(row.submit.request_id, token_id, self._logprob(row, position, token_id))

    def _logprob(self, row: Row, position: int, token_id: int) -> Logprob | None:
        """Deterministic: the sampled token gets -1/8 per position, each alternative 1 less."""
        top = row.submit.logprobs
        if top is None:
            return None
        logprob = -(position + 1) / 8
        top_ids = [(token_id + rank) % self.vocabulary_size for rank in range(top)]
        return Logprob(logprob, top_ids, [logprob - rank for rank in range(top)])


def _advance(row: Row) -> tuple[Row, int]:
    position = row.position
    row.position += 1
    return row, position


def _rows_of(plan: Plan) -> list[int]:
    """Every row of a step, forks included."""
    leaders = [prefill.request_id for prefill in plan.prefills]
    forks = [fork_id for prefill in plan.prefills for fork_id in prefill.forks]
    return [*leaders, *forks, *plan.decodes]


def _fill_in(text: str, found: re.Match[str]) -> str:
    """Replace {1}, {2} … with the pattern's groups."""
    return re.sub(r"\{(\d+)\}", lambda number: found[int(number[1])], text)
