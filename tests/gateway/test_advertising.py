"""When the network is told of the server, what it is told, and that it is told goodbye first."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import (
    LAN,
    LOOPBACK,
    READY,
    FakeEngine,
    FakeEngines,
    FakeLan,
    FakeTime,
    byte_tokenizer,
    settle,
)
from tests.gateway.harness import chat_body, ready_gateway
from verger import __version__
from verger.errors import EngineUnavailable, LanError
from verger.formats.dates import PinnedDates
from verger.formats.vocabulary import Vocabulary
from verger.gateway.advertising import CHECK_S, Advertising
from verger.gateway.engine_client import EngineClient, RestartLimits
from verger.gateway.safe_mode import CRASHES
from verger.gateway.service import Service
from verger.gateway.settings import ServerSettings
from verger.lan.advertise import Backend
from verger.lan.records import Advert
from verger.messages import PROTOCOL_VERSION, Fatal, Hello

pytestmark = pytest.mark.anyio

SETTINGS = ServerSettings("gpt-oss-20b", Path(), 1000, name="office-mini", instance_id="the id")
ADVERT = Advert(
    "office-mini", 8374, "the id", ("gpt-oss-20b",), needs_key=False, has_tls=False, version=""
)


@dataclass
class Stage:
    """Advertising, and all that it looks at."""

    lan: FakeLan
    time: FakeTime
    engines: FakeEngines
    service: Service
    advertising: Advertising

    def begin(self, host: str = "0.0.0.0") -> None:
        self.advertising.start(host, ADVERT.port)

    async def ready(self) -> FakeEngine:
        """The next engine becomes ready."""
        engine = await self.engines.next_ready(READY)
        await self.service.engine.wait_ready(30)
        await settle()
        return engine

    async def look(self, times: int = 1) -> None:
        """Let as many looks happen."""
        for _ in range(times):
            await self.time.advance(CHECK_S)


@asynccontextmanager
async def staged(**changes: Any) -> AsyncIterator[Stage]:
    lan, time, engines = FakeLan(), FakeTime(), FakeEngines()
    limits = RestartLimits(first_delay_s=0)
    engine = EngineClient(["fake"], Hello(PROTOCOL_VERSION, 0), limits, spawn=engines.spawn)
    vocabulary = Vocabulary.from_file_bytes(byte_tokenizer().to_str().encode())
    service = Service(replace(SETTINGS, **changes), vocabulary, engine, PinnedDates())
    advertising = Advertising(service, make=lan.make, choose=lan.choose, sleep=time.sleep)
    await engine.start()
    try:
        yield Stage(lan, time, engines, service, advertising)
    finally:
        await advertising.stop()
        engines.exit_all()
        await engine.stop(0)


async def test_a_server_is_advertised_once_it_is_ready() -> None:
    async with staged(bonjour=Backend.ZEROCONF) as stage:
        stage.begin()
        await settle()
        assert stage.lan.calls == []
        assert stage.service.lan.off_reason == "the engine is not ready yet"

        await stage.ready()

        assert stage.lan.calls == [("start", replace(ADVERT, version=__version__))]
        assert stage.lan.addresses == ("192.168.1.20",)
        lan = stage.service.lan
        assert (lan.backend, lan.name, lan.interfaces) == ("zeroconf", "office-mini-2", ("en0",))
        assert lan.off_reason is None
        await stage.look(3)
        assert stage.lan.verbs == ["start"]


@pytest.mark.parametrize(
    ("host", "changes", "reason"),
    [
        ("127.0.0.1", {}, "only this machine reaches 127.0.0.1: see --host"),
        ("::1", {}, "only this machine reaches ::1: see --host"),
        ("0.0.0.0", {"bonjour": Backend.NONE}, "[lan] bonjour is none"),
    ],
)
async def test_a_server_that_is_not_for_the_office_is_never_advertised(
    host: str, changes: dict[str, Any], reason: str
) -> None:
    async with staged(**changes) as stage:
        stage.begin(host)
        await stage.ready()
        await stage.look()
        assert stage.lan.calls == []
        assert (stage.service.lan.name, stage.service.lan.off_reason) == (None, reason)


async def test_on_loopback_it_is_advertised_where_interfaces_are_named() -> None:
    async with staged(lan_interfaces=("lo0",)) as stage:
        stage.lan.interfaces = (LOOPBACK,)
        stage.begin("127.0.0.1")
        await stage.ready()
        assert (stage.lan.verbs, stage.lan.addresses) == (["start"], ("127.0.0.1",))


async def test_an_address_that_nobody_listens_on_is_not_advertised() -> None:
    async with staged(lan_interfaces=("en0",)) as stage:
        stage.begin("127.0.0.1")
        await stage.ready()
        assert stage.lan.calls == []
        assert stage.service.lan.off_reason == (
            "the server listens on 127.0.0.1, which is no address of en0"
        )


async def test_the_test_model_is_advertised_on_loopback_only() -> None:
    async with staged(model_id="nano", lan_interfaces=("en0",)) as stage:
        stage.begin()
        await stage.ready()
        assert stage.lan.calls == []
        assert "nano is a test model" in str(stage.service.lan.off_reason)
        stage.lan.interfaces = (LAN, LOOPBACK)
        await stage.look()
        assert (stage.lan.verbs, stage.lan.addresses) == (["start"], ("127.0.0.1",))


async def test_what_changes_is_told() -> None:
    async with staged() as stage:
        stage.begin()
        await stage.ready()
        stage.service.settings = replace(stage.service.settings, model_id="gpt-oss-120b")
        await stage.look(2)
        assert stage.lan.verbs == ["start", "update"]
        updated = stage.lan.calls[-1][1]
        assert updated is not None
        assert updated.model_ids == ("gpt-oss-120b",)


async def test_a_name_that_the_system_changes_is_shown() -> None:
    async with staged() as stage:
        stage.begin()
        await stage.ready()
        stage.lan.name = "office-mini (2)"
        await stage.look()
        assert stage.service.lan.name == "office-mini (2)"
        assert stage.lan.verbs == ["start"]


async def test_a_restart_of_the_engine_changes_nothing_and_its_end_withdraws() -> None:
    async with staged() as stage:
        stage.begin()
        engine = await stage.ready()
        engine.exit(-9)
        second = await stage.engines.next()
        await settle()
        assert stage.service.engine.state.value == "restarting"
        await stage.look(5)
        assert stage.lan.verbs == ["start"]

        second.send(Fatal("broken", is_permanent=True))
        second.exit(3)
        with pytest.raises(EngineUnavailable):
            await stage.service.engine.wait_ready(30)
        await stage.look(2)
        assert stage.lan.verbs == ["start", "stop"]
        assert stage.service.lan.off_reason == "the engine cannot run"


async def test_in_safe_mode_nobody_is_sent_here() -> None:
    async with staged() as stage:
        stage.begin()
        engine = await stage.ready()
        for _ in range(CRASHES - 1):
            engine.exit(-9)
            engine = await stage.engines.next()
        engine.exit(-9)
        with pytest.raises(EngineUnavailable):
            await stage.service.engine.wait_ready(30)
        assert stage.service.engine.state.value == "safe_mode"
        await stage.look(2)
        assert stage.lan.verbs == ["start", "stop"]
        assert stage.service.lan.off_reason == "the engine is in safe mode"


async def test_a_network_that_is_away_shortly_is_no_reason_to_withdraw() -> None:
    async with staged() as stage:
        stage.begin()
        await stage.ready()
        stage.lan.interfaces = ()
        await stage.look(1)
        stage.lan.interfaces = (LAN,)
        await stage.look(1)
        stage.lan.interfaces = ()
        await stage.look(1)
        assert stage.lan.verbs == ["start"]
        await stage.look(1)
        assert stage.lan.verbs == ["start", "stop"]
        assert stage.service.lan.off_reason == "no interface"
        stage.lan.interfaces = (LAN,)
        await stage.look(1)
        assert stage.lan.verbs == ["start", "stop", "start"]


@pytest.mark.parametrize("is_lost", [True, False])
async def test_another_network_or_a_lost_registration_is_registered_anew(is_lost: bool) -> None:
    async with staged() as stage:
        stage.begin()
        await stage.ready()
        if is_lost:
            stage.lan.name = ""
        else:
            stage.lan.interfaces = (replace(LAN, name="en1"),)
        await stage.look(1)
        assert stage.lan.verbs == ["start"]
        await stage.look(1)
        assert stage.lan.verbs == ["start", "stop", "start"]
        assert stage.service.lan.name == "office-mini-2"


async def test_a_failure_is_logged_once_shown_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with staged() as stage:
        stage.lan.failure = LanError("port 5353 is taken")
        stage.begin()
        await stage.ready()
        await stage.look(3)
        assert stage.service.lan.off_reason == "port 5353 is taken"
        assert stage.lan.verbs == ["start", "stop"] * 4
        warnings = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
        assert warnings == ['event=not_advertised reason="port 5353 is taken"']

        stage.lan.failure = None
        await stage.look()
        assert stage.service.lan.name == "office-mini-2"


async def test_an_update_that_keeps_failing_ends_in_a_new_registration() -> None:
    async with staged() as stage:
        stage.begin()
        await stage.ready()
        stage.lan.failure = LanError("the responder is gone")
        stage.service.settings = replace(stage.service.settings, model_id="other")
        await stage.look(2)
        assert stage.lan.verbs == ["start", "update", "update", "stop"]


async def test_a_defect_stops_advertising_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with staged() as stage:
        stage.lan.failure = KeyError("a defect")
        stage.begin()
        await stage.ready()
        assert stage.service.lan.off_reason == "advertising failed: 'a defect'"
        assert "event=advertising_failed" in caplog.text
        await stage.advertising.stop()
        assert stage.lan.verbs == ["start", "stop"]


async def test_stopping_withdraws_once() -> None:
    async with staged() as stage:
        stage.begin()
        await stage.ready()
        await stage.advertising.stop()
        await stage.advertising.stop()
        assert stage.lan.verbs == ["start", "stop"]
        assert stage.service.lan.off_reason == "the server is stopping"


async def test_the_network_is_told_goodbye_before_the_last_answers_are_given(
    tmp_path: Path,
) -> None:
    lan = FakeLan()
    lan.interfaces = (LOOPBACK,)
    async with ready_gateway(tmp_path, lan, lan_interfaces=("lo0",)) as (gateway, engine):
        while not lan.name:
            await settle()
        body = chat_body(stream=True)
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            submit = await engine.submits.get()
            gateway.server.ask_to_exit()
            while not engine.draining.is_set():
                await settle()
            assert lan.verbs == ["start", "stop"]
            engine.say(submit, "<|channel|>final<|message|>late")
            engine.finish(submit)
            assert "late" in (await response.aread()).decode()
        await gateway.serving


async def test_the_status_says_who_the_server_is_and_what_the_network_knows(
    tmp_path: Path,
) -> None:
    async with ready_gateway(tmp_path, name="office-mini") as (gateway, _):
        status = (await gateway.http.get("/v1/status")).json()
    assert (status["name"], status["version"]) == ("office-mini", __version__)
    assert status["id"] == gateway.service.settings.instance_id
    assert (status["lan"]["name"], status["lan"]["interfaces"]) == (None, [])
    assert status["lan"]["off_reason"] == "only this machine reaches 127.0.0.1: see --host"
