"""How the tests here start a real engine that plays a script, and what they ask it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes import byte_tokenizer, special_id, write_model_folder
from verger.gateway.engine_client import EngineClient, RestartLimits
from verger.messages import PROTOCOL_VERSION, Finished, Hello, RowTokens, Submit

WAIT_S = 30.0
LIMITS = RestartLimits(first_delay_s=0.01)
TOKENIZER = byte_tokenizer()
STOP_IDS = [special_id("<|return|>"), special_id("<|call|>")]
HELLO = Hello(PROTOCOL_VERSION, special_id("<|message|>"))
FINAL = "<|channel|>final<|message|>"
SCRIPT = f"""
context_tokens = 20000
[[reply]]
match = 'say (\\w+)'
text = '{FINAL}You said {{1}}.'
[[reply]]
match = 'slow'
text = '{FINAL}{"word " * 2000}'
step_s = 0.005
[[reply]]
match = 'long'
text = '{FINAL}done'
prefill_s = 0.05
[[reply]]
match = 'fail'
text = '{FINAL}abc'
fail_at = 3
[[reply]]
match = 'die'
text = '{FINAL}abc'
die_at = 3
[[reply]]
match = 'hang'
text = '{FINAL}abc'
hang_at = 3
"""


def make_command(folder: Path, script: str = SCRIPT, *flags: str) -> list[str]:
    """The engine's command; the folder gets a tokenizer and the script."""
    model = write_model_folder(folder / "model")
    (folder / "script.toml").write_text(script)
    command = [sys.executable, "-P", "-m", "verger.engine", "--model", str(model)]
    return [*command, "--model-id", "fake", "--fake", str(folder / "script.toml"), *flags]


def ask(prompt: str, max_tokens: int = 100_000, logprobs: int | None = None) -> Submit:
    ids = TOKENIZER.encode(prompt).ids
    return Submit(0, ids, max_tokens, stop_ids=STOP_IDS, logprobs=logprobs)


@asynccontextmanager
async def running(
    command: Sequence[str], hello: Hello = HELLO, limits: RestartLimits = LIMITS
) -> AsyncIterator[EngineClient]:
    """A started client; every test is done well within the deadline or has failed."""
    client = EngineClient(command, hello, limits)
    async with asyncio.timeout(WAIT_S):
        await client.start()
        try:
            yield client
        finally:
            await client.stop(drain_s=0.0)


async def answer(client: EngineClient, submit: Submit) -> tuple[str, Finished]:
    """The text of a whole answer, specials written out, and how it ended."""
    ids: list[int] = []
    async with client.generate(submit) as generation:
        async for event in generation:
            match event:
                case RowTokens():
                    ids += event.ids
                case Finished():
                    return TOKENIZER.decode(ids, skip_special_tokens=False), event
    raise AssertionError("no end came")
