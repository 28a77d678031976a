"""`verger serve` as a process of its own, and the official clients connected to it.

Used by the contract tests. What the clients receive passes the shared validator.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from tests.traffic import Traffic, WatchedAsyncTransport, WatchedTransport

MODEL_ID = "nano"
ANALYSIS = "<|channel|>analysis<|message|>"
NEXT = "<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"

# The first reply that fits the prompt speaks, so what comes later in a conversation stands first.
SCRIPT = rf"""
[[reply]]
match = 'say (.+?)<'
text = '{ANALYSIS}They want me to say it.{NEXT}{FINAL}{{1}}'
[[reply]]
match = 'I should look.*to=functions.weather.*functions.weather to=assistant.*<\|message\|>(\w+)'
text = '{FINAL}It is {{1}}, as I thought.'
step_s = 0.01
[[reply]]
match = 'functions.weather to=assistant'
text = '{FINAL}I have lost my thoughts.'
[[reply]]
match = 'weather in (\w+)\?'
text = '{ANALYSIS}I should look.{NEXT}{CALL}{{"city":"{{1}}"}}<|call|>'
[[reply]]
match = 'preamble'
text = '<|channel|>commentary<|message|>Let me see.{NEXT}{FINAL}Here it is.'
[[reply]]
match = 'silent'
text = '{FINAL}'
[[reply]]
match = 'formless'
text = 'no format at all'
[[reply]]
match = 'twofold'
text = '{CALL}{{}}{NEXT}{ANALYSIS}And again.{NEXT}{CALL}{{"city":""}}<|call|>'
[[reply]]
match = 'no JSON'
text = '{CALL}{{"city":<|call|>'
[[reply]]
match = 'apple'
text = '{FINAL}half an 🍏🍏🍏'
[[reply]]
match = 'endless'
text = '{FINAL}{"and so on " * 400}'
step_s = 0.05
[[reply]]
match = 'late'
text = '{FINAL}at last'
prefill_s = 1.0
[[reply]]
match = 'die'
text = '{FINAL}these are my last words'
die_at = 5
[[reply]]
match = 'fail'
text = '{FINAL}these are my last words'
fail_at = 0
"""


@dataclass(slots=True)
class Live:
    """A server that is ready."""

    process: subprocess.Popen[str]
    url: str
    traffic: Traffic

    def client(self, **options: Any) -> OpenAI:
        """The official client; it retries only if it is told to."""
        http = DefaultHttpxClient(transport=WatchedTransport(self.traffic))
        return OpenAI(**self._options(http, options))

    def async_client(self, **options: Any) -> AsyncOpenAI:
        """The same for asyncio."""
        http = DefaultAsyncHttpxClient(transport=WatchedAsyncTransport(self.traffic))
        return AsyncOpenAI(**self._options(http, options))

    def _options(
        self, http: httpx2.Client | httpx2.AsyncClient, options: dict[str, Any]
    ) -> dict[str, Any]:
        shared = {"api_key": "none", "base_url": self.url, "max_retries": 0, "http_client": http}
        return {**shared, **options}


@contextmanager
def serving(home: Path, *flags: str) -> Iterator[Live]:
    """Serve until the block is left; whatever was received must have been valid."""
    command = [sys.executable, "-P", "-m", "verger.cli.main", "serve", "--port", "0"]
    command += ["--model", MODEL_ID, *flags]
    environment = {**os.environ, "VERGER_HOME": str(home)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(line for line in process.stderr if "event=listening" in line)
            next(line for line in process.stderr if "event=ready" in line)
            # Nobody reads on: a thread keeps the pipe from filling.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            live = Live(process, url.split("url=")[1].strip(), Traffic())
            yield live
            live.traffic.assert_valid()
        finally:
            process.kill()


@contextmanager
def playing(folder: Path, *flags: str) -> Iterator[Live]:
    """A server whose engine plays the script."""
    script = folder / "script.toml"
    script.write_text(SCRIPT)
    with serving(folder, "--fake", str(script), *flags) as live:
        yield live
