"""A Mac of stand-ins whose service is real: Verger's commands run, and its job is `verger serve`.

What launchd, dscl, pip and the others do is FakeMac's; its home is in the same folder.
"""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.fake_mac import FakeMac
from verger.macos.executor import Done

COMMAND_LIMIT_S = 60.0
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
    job: "subprocess.Popen[str] | None" = None

    def close(self) -> None:
        if self.job is not None:
            self.job.kill()
            self.job.communicate()
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
            self._start()
        if arguments[0] == "bootout":
            self.close()
        return done

    def _curl(self, arguments: list[str]) -> Done:
        if arguments[-1].endswith("/livez"):
            return super()._curl(arguments)
        try:
            with urllib.request.urlopen(arguments[-1], timeout=5):
                return Done(0)
        except (urllib.error.URLError, OSError) as error:
            return Done(7, err=f"curl: {error}")

    def _start(self) -> None:
        """As launchd would; comes back when it is ready, or has ended."""
        home = str(self.layout.home)
        variables = self._environment({"HOME": home, "VERGER_HOME": home})
        self.job = subprocess.Popen(
            self._verger("serve"), env=variables, stderr=subprocess.PIPE, text=True
        )
        assert self.job.stderr is not None
        for line in self.job.stderr:
            if "event=ready" in line:
                return

    def _verger(self, *command: str) -> list[str]:
        return [sys.executable, "-P", "-c", PROGRAM, str(self.catalogue), *command]

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], **variables}
