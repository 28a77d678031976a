"""As a stranger would do it: pip installs wheel and engine, `verger serve` runs from any folder."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.process

LOCK = Path(__file__).parents[2] / "requirements.lock"


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `verger` and `python`, once pip has fetched what the lock file names."""
    folder = tmp_path_factory.mktemp("served")
    constraints = folder / "constraints.txt"
    # Without the hashes: pip would want one of the wheel too.
    pins = re.findall(r"^[\w.-]+==[^\\]+", LOCK.read_text(), re.M)
    constraints.write_text("\n".join(pins))
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    installing = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    python = folder / "environment" / "bin" / "python"
    subprocess.run([python, *installing, "-c", constraints, f"{wheel}[engine]"], check=True)
    return python.parent


@contextmanager
def serving(scripts: Path, folder: Path) -> Iterator[str]:
    """The URL of `verger serve`, once it is ready; it must end as a signal asks it to."""
    command = [str(scripts / "verger"), "serve", "--model", "nano", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = ""
            for line in process.stderr:
                url = line.partition("url=")[2].strip() or url
                if "event=ready" in line:
                    break
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
        assert process.wait() == 0


@pytest.mark.timeout(600)
def test_the_installed_wheel_serves_nano(scripts: Path, tmp_path: Path) -> None:
    with serving(scripts, tmp_path) as url:
        message = {"role": "user", "content": "The orchard is open."}
        answer = httpx.post(
            f"{url}/chat/completions",
            json={"model": "gpt-4o", "messages": [message], "temperature": 0},
            timeout=60,
        )
    assert answer.status_code == 200
    assert answer.json()["model"] == "nano"
    assert answer.json()["usage"]["completion_tokens"] > 0


@pytest.mark.timeout(600)
def test_how_soon_help_answers_is_reported(
    scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its aim is half the time of importing mlx-lm; the second of two runs is taken."""
    help_s = _elapsed_s(scripts / "verger", "--help")
    import_s = _elapsed_s(scripts / "python", "-c", "import mlx_lm")
    with capsys.disabled():
        print(f"\nverger --help: {help_s:.2f} s; import mlx_lm: {import_s:.2f} s")


def _elapsed_s(*command: str | Path) -> float:
    for _ in range(2):
        begun_s = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        elapsed_s = time.monotonic() - begun_s
    return elapsed_s
