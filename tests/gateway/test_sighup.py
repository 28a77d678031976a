"""SIGHUP to a real server: new certificates and settings, or the old ones and the reason why."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from tests.certificates import trusting, write_certificate

pytestmark = pytest.mark.process

SCRIPT = """
[[reply]]
text = "<|channel|>final<|message|>hello"
"""


class ServerProcess:
    """`verger serve` with a configuration file, and the lines that it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process = process
        self.log = process.stderr
        line = self.next_line("event=listening")
        self.url = line.split("url=")[1].strip().removesuffix("/v1")

    def next_line(self, event: str) -> str:
        return next(line for line in self.log if event in line)

    def hang_up(self, then: str) -> str:
        """The line that says what became of the signal."""
        self.process.send_signal(signal.SIGHUP)
        return self.next_line(then)

    def status_of(self, authority: trustme.CA, host: str) -> int:
        answer = httpx.get(
            f"{self.url}/livez", verify=trusting(authority), headers={"host": host}, timeout=30
        )
        return answer.status_code


@contextmanager
def serving(folder: Path) -> Iterator[ServerProcess]:
    (folder / "script.toml").write_text(SCRIPT)
    command = [sys.executable, "-m", "verger.cli.main", "serve", "--port", "0", "--model", "nano"]
    command += ["--config", str(folder / "config.toml"), "--fake", str(folder / "script.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield ServerProcess(process)
        finally:
            process.kill()


def write_config(folder: Path, **server: str) -> None:
    lines = "".join(f'{key} = "{value}"\n' for key, value in server.items())
    paths = f'tls_cert = "{folder / "cert.pem"}"\ntls_key = "{folder / "key.pem"}"\n'
    (folder / "config.toml").write_text(f"[server]\n{lines}{paths}")


@pytest.mark.slow
def test_certificate_and_settings_are_read_again_or_the_old_ones_stay(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    write_certificate(old, tmp_path)
    write_config(tmp_path, allowed_hosts="one.example")
    with serving(tmp_path) as server:
        server.hang_up("event=reloaded parts=configuration")
        server.next_line("event=ready")
        assert server.status_of(old, "one.example") == 200
        assert server.status_of(old, "two.example") == 403

        write_certificate(new, tmp_path)
        write_config(tmp_path, allowed_hosts="two.example", name="other")
        assert "settings=server.name" in server.hang_up("event=restart_needed")
        assert server.status_of(new, "two.example") == 200
        assert server.status_of(new, "one.example") == 403
        with pytest.raises(httpx.ConnectError):
            server.status_of(old, "two.example")

        write_config(tmp_path, allowed_hosts="three.example", no_such_setting="1")
        assert "unknown setting server.no_such_setting" in server.hang_up("event=reload_failed")
        write_config(tmp_path, allowed_hosts="three.example")
        os.truncate(tmp_path / "key.pem", 0)
        assert "both in PEM" in server.hang_up("event=reload_failed")
        assert server.status_of(new, "two.example") == 200
        assert server.status_of(new, "three.example") == 403

        server.process.terminate()
        assert server.process.wait(60) == 0


@pytest.mark.slow
def test_a_key_that_others_may_read_keeps_the_server_from_starting(tmp_path: Path) -> None:
    files = write_certificate(trustme.CA(), tmp_path)
    files.key.chmod(0o644)
    command = [sys.executable, "-m", "verger.cli.main", "serve", "--port", "0", "--model", "nano"]
    command += ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 3
    assert f"the TLS key {files.key} can be read by others: chmod 600 it" in done.stderr
    assert "Traceback" not in done.stderr
