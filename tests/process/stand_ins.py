"""Programs of a Mac, as small scripts to stand on the PATH: launchctl, powermetrics, ssh.

Used by the tests of scripts/first_hour. Each writes what it was asked into its folder.
"""

import sys
from pathlib import Path

LAUNCHCTL = """
import os, pathlib, plistlib, shutil, signal, subprocess, sys
here = pathlib.Path(__file__).parent
verb, *rest = sys.argv[1:]
with (here / "verbs").open("a") as verbs:
    print(verb, *rest, file=verbs)
label = rest[-1].rpartition("/")[2]
if verb == "bootstrap":
    if (here / "refuses").exists():
        sys.exit("Bootstrap failed: 5: Input/output error")
    job = plistlib.loads(pathlib.Path(rest[1]).read_bytes())
    shutil.copy(rest[1], here / f"{job['Label']}.plist")
    child = subprocess.Popen(
        job["ProgramArguments"], env=job["EnvironmentVariables"], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    (here / f"{job['Label']}.pid").write_text(str(child.pid))
    if not (here / "hangs").exists():
        child.wait()
elif verb == "bootout":
    pid = here / f"{label}.pid"
    if not pid.exists():
        sys.exit(3)
    try:
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    except ProcessLookupError:
        pass
    pid.unlink()
elif verb == "print" and not rest[0].startswith("gui/501/"):
    sys.exit(0 if rest[0] == "gui/501" else 113)
elif verb == "print":
    sys.exit(0 if (here / f"{label}.pid").exists() else 113)
"""
"""Runs a job until it ends, or beside us if a file `hangs` lies there; knows the user 501, who is
logged in. A file `refuses` makes it refuse every job."""

POWERMETRICS = """
import datetime, pathlib, plistlib, sys, time
here = pathlib.Path(__file__).parent
samples = int(sys.argv[sys.argv.index("-n") + 1])
is_idle = samples <= 10
for second in range(min(samples, 40)):
    told = {
        "elapsed_ns": 1_000_000_000,
        "timestamp": datetime.datetime.fromtimestamp(990 + second, datetime.UTC),
        "processor": {"combined_power": 4000.0 if is_idle or second < 10 else 40000.0,
                      "gpu_power": 100.0 if is_idle else 30000.0},
    }
    sys.stdout.buffer.write(b"\\0" * bool(second) + plistlib.dumps(told))
    sys.stdout.flush()
if not is_idle:
    sys.stdout.buffer.write(b"\\0<?xml version='1.0'?><plist><dict><key>elap")
    sys.stdout.flush()
    (here / "sampling").touch()
    time.sleep(300)
"""
"""4 W while idle; beside a load 4 W until 1000 s after 1970 and 40 W from then on. Its last sample
is cut off, and it goes on until it is ended."""

SSH = '#!/bin/sh\nfor last; do :; done\nexec /bin/sh -c "$last"\n'
"""Runs what it is asked to on this machine."""


def write_program(path: Path, program: str) -> None:
    """A script in Python, or in whatever its first line names."""
    first = "" if program.startswith("#!") else f"#!{sys.executable}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(first + program.lstrip("\n"))
    path.chmod(0o755)
