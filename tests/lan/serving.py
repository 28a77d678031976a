"""A whole server on one of the networks that a test has made."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lan.networks import Host

SLOW_SCRIPT = r"""
[[reply]]
text = "<|channel|>final<|message|>aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
step_s = 0.1
"""
"""Three seconds of an answer."""


@contextmanager
def serving(
    host: Host, home: Path, model: str, *flags: str, script: str = SLOW_SCRIPT, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A ready server on the host whose engine plays the script."""
    home.mkdir(exist_ok=True)
    (home / "script.toml").write_text(script)
    command = [sys.executable, "-P", "-m", "verger.cli.main", "serve", "--model", model]
    command += ["--fake", str(home / "script.toml"), *flags]
    environment = {**os.environ, "VERGER_HOME": str(home), "VERGER_SERVER_NAME": "office-mini"}
    with subprocess.Popen(
        host.command(*command), env=environment | variables, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if "event=advertised" in line)
            # Nobody reads on: a thread keeps the pipe from filling.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process
        finally:
            process.kill()
