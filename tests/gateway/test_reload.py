"""SIGHUP: read again, all or nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.certificates import trusting, write_certificate
from tests.gateway.harness import MODEL_ID, ready_gateway
from verger.catalogue import ModelChoice
from verger.cli.server_settings import fresh_settings
from verger.config import load_config
from verger.errors import ConfigError
from verger.gateway.fresh_settings import FreshSettings, settings_part
from verger.gateway.reload import Apply, Reloader
from verger.gateway.settings import ServerSettings
from verger.model_folder import ModelFolder


def part(name: str, done: list[str], error: Exception | None = None) -> Callable[[], Apply]:
    def read() -> Apply:
        done.append(f"read {name}")
        if error is not None:
            raise error
        return lambda: done.append(f"apply {name}")

    return read


def test_all_parts_are_read_before_any_is_applied(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    done: list[str] = []
    reloader = Reloader()
    for name in ("configuration", "keys"):
        reloader.add(name, part(name, done))
    reloader.reload()

    assert done == ["read configuration", "read keys", "apply configuration", "apply keys"]
    assert "event=reloaded parts=configuration,keys" in caplog.text


@pytest.mark.parametrize("error", [ConfigError("bad value"), OSError("bad value")])
def test_a_part_that_cannot_be_read_changes_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    reloader = Reloader()
    reloader.add("configuration", part("configuration", done))
    reloader.add("keys", part("keys", done, error))
    reloader.add("later", part("later", done))
    reloader.reload()

    assert done == ["read configuration", "read keys"]
    assert 'event=reload_failed part=keys reason="bad value"' in caplog.text


def test_a_part_is_added_once() -> None:
    reloader = Reloader()
    reloader.add("keys", part("keys", []))
    with pytest.raises(AssertionError, match="keys is added twice"):
        reloader.add("keys", part("keys", []))


CHANGED = """
[server]
host = "0.0.0.0"
port = 9
name = "other"
heartbeat_s = 7
allowed_hosts = "a.example"
cors_origins = "https://a.example"
tls_cert = "/c"
tls_key = "/k"
[engine]
model = "nano"
max_rows = 3
[aliases]
mine = "m"
gpt-4o = "other"
"""


def test_what_a_running_server_takes_over_and_what_needs_a_restart(tmp_path: Path) -> None:
    choice = ModelChoice("m", ModelFolder(tmp_path, 4096, 1), model=None)
    running = load_config(environ={}, file=written(tmp_path, "[aliases]\ngone = 'm'\n"))
    fresh = load_config(environ={}, file=written(tmp_path, CHANGED))
    taken = fresh_settings(running, fresh, choice, fake=None, is_insecure=False)

    assert taken.needs_restart == (
        *("engine.max_rows", "engine.model"),
        *("server.host", "server.name", "server.port"),
    )
    settings = taken.settings
    assert (settings.host, settings.port, settings.name) == ("127.0.0.1", 8374, "verger")
    assert (settings.max_rows, settings.heartbeat_s) == (16, 7)
    assert settings.allowed_hosts == ("a.example",)
    assert settings.cors_origins == ("https://a.example",)
    assert settings.tls is not None
    assert (settings.aliases["mine"], settings.aliases["gpt-4o"]) == ("m", "other")
    assert "gone" not in settings.aliases


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


@pytest.mark.anyio
async def test_a_running_server_obeys_its_new_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready_gateway(tmp_path) as (gateway, _):
        service = gateway.service
        fresh = replace(
            service.settings,
            aliases={"mine": MODEL_ID},
            allowed_hosts=("mini.example",),
            cors_origins=("https://a.example",),
        )
        service.reloader.add(
            "configuration", settings_part(service, lambda: FreshSettings(fresh, ("server.port",)))
        )
        headers = {"host": "mini.example", "origin": "https://a.example"}
        assert (await gateway.http.get("/livez", headers=headers)).status_code == 403
        service.reloader.reload()

        allowed = await gateway.http.get("/livez", headers=headers)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert (await gateway.http.get("/v1/models/mine")).status_code == 200
        assert (await gateway.http.get("/v1/models/gpt-4o")).status_code == 404
        assert "event=restart_needed settings=server.port" in caplog.text


@pytest.mark.anyio
async def test_tls_cannot_be_turned_on_or_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    files = write_certificate(authority, tmp_path)
    for before, after in ((None, files), (files, None)):
        trust = trusting(authority)
        async with ready_gateway(tmp_path, trust=trust, tls=before) as (gateway, _):
            fresh = replace(gateway.service.settings, tls=after, allowed_hosts=("mini.example",))
            _reload(gateway.service.reloader, settings_part(gateway.service, _always(fresh)))
            assert caplog.text.count("TLS cannot be turned on or off") == 1
            caplog.clear()
            assert gateway.service.settings.allowed_hosts == ()
            assert (await gateway.http.get("/livez")).status_code == 200


def _always(settings: ServerSettings) -> Callable[[], FreshSettings]:
    return lambda: FreshSettings(settings)


def _reload(reloader: Reloader, read: Callable[[], Apply]) -> None:
    reloader.add("configuration", read)
    reloader.reload()
