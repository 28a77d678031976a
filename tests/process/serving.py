"""`verger serve` as a process, with an engine process that plays a script, asking for keys."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.fakes import write_model_folder
from tests.keys import bearer, make_key
from tests.model_folders import write_model_folder as write_whole_model_folder
from verger.model_folder import HARMONY_TOKENS

SCRIPT = "[[reply]]\ntext = '<|channel|>final<|message|>hello'\n"
PROMPT = "What was said so far in the orchard. " * 20
VERGER = [sys.executable, "-P", "-m", "verger.cli.main"]


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    database: Path
    lines: list[str]
    """What it has logged."""
    reader: threading.Thread

    def stop(self) -> str:
        """The whole log, once it has ended."""
        self.process.terminate()
        self.reader.join(30)
        assert self.process.wait(30) == 0
        return "".join(self.lines)

    def ask(self, key: str, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": PROMPT}]
        body = {"model": "gpt-4o", "messages": messages, **fields}
        headers = bearer(key)
        return httpx.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=60)

    def cached_tokens(self, key: str) -> int:
        response = self.ask(key)
        assert response.status_code == 200
        return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@contextmanager
def serving(folder: Path, config: str = "") -> Iterator[Served]:
    """Ready, on loopback, with a key; everything it keeps is in the folder. `config` is its
    config.toml."""
    database = folder / "home" / "verger.db"
    database.parent.mkdir(parents=True)
    (database.parent / "config.toml").write_text(config)
    make_key(database, "first")
    script = folder / "script.toml"
    script.write_text(SCRIPT)
    model = write_whole_model_folder(folder / "model", tokens=HARMONY_TOKENS)
    # The tokenizer of the checks has specials only; the engine's needs the bytes.
    write_model_folder(model)
    command = [*VERGER, "serve", "--port", "0", "--model", str(model), "--fake", str(script)]
    variables = {**os.environ, "VERGER_HOME": str(database.parent)}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if "event=ready" in line:
                    break
            url = "".join(lines).split("url=")[1].split("\n")[0]
            reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
            reader.start()
            yield Served(process, url, database, lines, reader)
            process.kill()
            reader.join()
        finally:
            process.kill()
