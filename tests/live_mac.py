"""A Mac of stand-ins whose service is real: Verger's commands run, and its job is `verger serve`.

What launchd, dscl, pip and the others do is FakeMac's; its home is in the same folder.
"""

import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.fake_mac import FakeMac
from verger.macos.programs import Done

COMMAND_LIMIT_S = 60.0
EVENT_LIMIT_S = 60.0
PROGRAM = """
import sys
from pathlib import Path
from verger import paths
catalogue = Path(sys.argv.pop(1))
paths.catalogue_dir = lambda: catalogue
from verger.cli.main import main
main()
"""
"""Verger with a catalogue of the test's own."""


@dataclass
class LiveMac(FakeMac):
    catalogue: Path = Path()
    ran: list[list[str]] = field(default_factory=list)
    """The commands of Verger that the service's account was asked to run."""
    job: "Job | None" = None

    def close(self) -> None:
        if self.job is not None:
            self.job.close()
            self.job = None

    def _sudo(self, arguments: list[str]) -> Done:
        # -u _verger env -i NAME=VALUE … python -P -m verger.cli.main COMMAND …
        start = arguments.index("verger.cli.main")
        variables = dict(text.split("=", 1) for text in arguments[4 : start - 3])
        command = arguments[start + 1 :]
        self.ran.append(command)
        done = subprocess.run(
            self._verger(*command),
            env=self._environment(variables),
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def _launchctl(self, arguments: list[str]) -> Done:
        done = super()._launchctl(arguments)
        if arguments[0] == "bootstrap" and done.status == 0:
            self.job = self._started()
        if arguments[0] == "bootout":
            self.close()
        return done

    def _curl(self, arguments: list[str]) -> Done:
        url = arguments[-1]
        if self.job is not None:
            # Asking again and again takes no time here: it is waited for instead.
            self.job.wait_for("event=ready" if url.endswith("/readyz") else "event=listening")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return Done(0)
        except (urllib.error.URLError, OSError) as error:
            return Done(7, err=f"curl: {error}")

    def _started(self) -> "Job":
        home = str(self.layout.home)
        variables = self._environment({"HOME": home, "VERGER_HOME": home})
        return Job(self._verger("serve"), variables)

    def _verger(self, *command: str) -> list[str]:
        return [sys.executable, "-P", "-c", PROGRAM, str(self.catalogue), *command]

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], **variables}


class Job:
    """A `verger serve` as launchd runs it, and a thread that reads what it says."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        )
        self._lines: list[str] = []
        self._has_ended = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, event: str) -> None:
        """Until it has said so, or ended."""

        def has_happened() -> bool:
            return self._has_ended or any(event in line for line in self._lines)

        with self._more:
            assert self._more.wait_for(has_happened, EVENT_LIMIT_S), f"no {event}: {self._lines}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                with self._more:
                    self._lines.append(line)
                    self._more.notify_all()
        with self._more:
            self._has_ended = True
            self._more.notify_all()
