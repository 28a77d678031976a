"""launchctl's verbs in the order in which they work. Pure: steps, no I/O.

    start   nobody else answers? enable → bootstrap → kickstart → print → wait until ready
            (without a model: alive)
    stop    bootout → wait until print fails: bootout may return before the process is gone

`print` is asked only whether the job is there; its text is no stable interface. Whether the service
works say its own /livez and /readyz.
"""

from dataclasses import replace

from verger.macos.layout import TARGET, Layout
from verger.macos.steps import Await, Run, Step

LAUNCHCTL = "/bin/launchctl"
CURL = "/usr/bin/curl"
STOP_ATTEMPTS = 90
"""A second each: twice what launchd itself grants (ExitTimeOut)."""
PAUSE_S = 2.0
READY_ATTEMPTS = 150
"""Five minutes: a model of 63 GB is read in one, from the disk of a Mac."""
ALIVE_ATTEMPTS = 30
"""One minute: without a model there is nothing to read."""
PROBE_S = 5
IN_PROGRESS, NO_SUCH_PROCESS, NOT_FOUND = 36, 3, 113
"""What bootout says of a job that is on its way out, and of one that is not there."""

_NO_ANSWER = frozenset(range(1, 126))
"""What curl ends with where it found nobody, or nobody who says 2xx."""

PRINT = (LAUNCHCTL, "print", TARGET)

_BOOTOUT = Run(
    what="stop the service: running answers finish",
    argv=(LAUNCHCTL, "bootout", TARGET),
    statuses=frozenset({0, IN_PROGRESS, NO_SUCH_PROCESS, NOT_FOUND}),
)
_GONE = Await(
    what="wait until the service is gone",
    argv=PRINT,
    attempts=STOP_ATTEMPTS,
    wants_success=False,
)


def start_steps(layout: Layout, url: str, *, has_model: bool) -> list[Step]:
    """Load and start the job, and see it answer; without a model it runs, but is not ready."""
    bootstrap = (LAUNCHCTL, "bootstrap", "system", str(layout.plist))
    return [
        Run(
            what=f"see that no other server answers at {url}",
            argv=probe(f"{url}/livez"),
            statuses=_NO_ANSWER,
            advice="one does, and would be taken for the service: end it (lsof -nP -iTCP "
            "-sTCP:LISTEN shows who), or set server.port",
        ),
        Run(what="let launchd start the service", argv=(LAUNCHCTL, "enable", TARGET)),
        Run(what="load the service", argv=bootstrap, undo=(_BOOTOUT, _GONE)),
        Run(what="start the service", argv=(LAUNCHCTL, "kickstart", TARGET), check=PRINT),
        await_answer(layout, url, has_model=has_model),
    ]


def stop_steps(layout: Layout) -> list[Step]:
    """Drain and unload the job; launchd loads it again at the next boot."""
    back = Run(
        what="load the service again",
        argv=(LAUNCHCTL, "bootstrap", "system", str(layout.plist)),
    )
    return [replace(_BOOTOUT, undo=(back,)), _GONE]


def await_answer(layout: Layout, url: str, *, has_model: bool) -> Await:
    """Wait until the service is ready; without a model, until it runs."""
    return await_ready(layout, url) if has_model else _await_alive(layout, url)


def await_ready(layout: Layout, url: str) -> Await:
    """Wait until the service would take a request."""
    return Await(
        what=f"wait for {url}/readyz",
        argv=probe(f"{url}/readyz"),
        attempts=READY_ATTEMPTS,
        pause_s=PAUSE_S,
        log=layout.crash_log,
        error_log=layout.server_log,
    )


def _await_alive(layout: Layout, url: str) -> Await:
    return Await(
        what=f"wait for {url}/livez: without a model it cannot be ready yet",
        argv=probe(f"{url}/livez"),
        attempts=ALIVE_ATTEMPTS,
        pause_s=PAUSE_S,
        log=layout.crash_log,
    )


def probe(url: str) -> tuple[str, ...]:
    """Succeeds if it is answered with 2xx. The certificate's name is not that of loopback."""
    quiet = ("--silent", "--show-error", "--output", "/dev/null")
    return (CURL, "--fail", "--insecure", "--noproxy", "*", *quiet, "--max-time", str(PROBE_S), url)
