"""How the tests here start a real engine that plays a script, and what they ask it."""

import sys
from pathlib import Path

from tests.fakes import byte_tokenizer, special_id, write_model_folder
from verger.messages import PROTOCOL_VERSION, Hello, Submit

WAIT_S = 30.0
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
