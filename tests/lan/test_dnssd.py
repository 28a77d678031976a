"""The backend for macOS against a stand-in for the system's library, compiled here.

The stand-in writes down each call, so that order, arguments and TXT bytes can be compared. What the
real one does across sleep and changes of network only a Mac can show.
"""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import pytest

from tests.lan.player import ADVERT
from verger.errors import LanError
from verger.lan import dnssd
from verger.lan.advertise import Backend, make_advertiser
from verger.lan.dnssd import LOCAL_ONLY, DnsSd
from verger.lan.interfaces import Interface
from verger.lan.records import encode_txt, pack_txt, saturn_txt

pytestmark = pytest.mark.anyio

LAN = Interface("en0", 4, (ip_interface("192.168.1.20/24"),))
CABLE = Interface("en1", 6, (ip_interface("10.0.0.2/8"),))
LOOPBACK = Interface("lo0", 1, (ip_interface("127.0.0.1/8"),))
VERGER_TXT = pack_txt(encode_txt(ADVERT)).hex()
SATURN_TXT = pack_txt(saturn_txt(ADVERT)).hex()

Play = Callable[[str], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the stand-in for DNS-SD needs a C compiler: cc or gcc")
    path = tmp_path_factory.mktemp("dns_sd") / "libdns_sd.so"
    source = Path(__file__).with_name("dns_sd.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-o", path, source], check=True)
    return str(path)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What has been called so far; registrations are numbered from 1 in each test."""
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("DNS_SD_LOG", str(log))

    def read() -> list[str]:
        lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
        numbers = sorted({int(line[1]) for line in lines})
        return [
            " ".join([line[0], str(numbers.index(int(line[1])) + 1), *line[2:]]) for line in lines
        ]

    return read


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, calls: object) -> Play:
    """What the responder shall do."""
    return lambda what: monkeypatch.setenv("DNS_SD_PLAY", what)


@asynccontextmanager
async def advertising(library: str, *interfaces: Interface) -> AsyncIterator[DnsSd]:
    advertiser = DnsSd(interfaces, library)
    yield advertiser
    await advertiser.stop()


async def named(advertiser: DnsSd, name: str) -> None:
    """Wait until the library's thread has seen what the responder says."""
    for _ in range(1_000_000):
        if advertiser.name == name:
            return
        await asyncio.sleep(0)
    pytest.fail(f"it is still called {advertiser.name!r}")


def registering(
    number: int, type_: str, text: str, name: str = "office-mini", index: int = 4
) -> str:
    where = f"interface={index} name={name} type={type_} domain=- host=- port=8374"
    return f"register {number} flags=0 {where} {text}"


async def test_it_registers_updates_and_withdraws(
    library: str, calls: Callable[[], list[str]]
) -> None:
    changed = replace(ADVERT, model_ids=("gpt-oss-120b",))
    async with advertising(library, LAN) as advertiser:
        assert await advertiser.start(ADVERT) == "office-mini"
        assert advertiser.name == "office-mini"
        await advertiser.update(changed)
        await advertiser.stop()

    assert advertiser.name == ""
    assert calls() == [
        registering(1, "_verger._tcp", VERGER_TXT),
        "process 1",
        registering(2, "_saturn._tcp", SATURN_TXT),
        "process 2",
        f"update 1 record=- flags=0 ttl=0 {pack_txt(encode_txt(changed)).hex()}",
        f"update 2 record=- flags=0 ttl=0 {SATURN_TXT}",
        "deallocate 1",
        "deallocate 2",
    ]


async def test_the_name_that_the_system_has_chosen_is_the_one_for_all(
    library: str, calls: Callable[[], list[str]], play: Play
) -> None:
    play("conflict")
    async with advertising(library, LAN, CABLE) as advertiser:
        assert await advertiser.start(ADVERT) == "office-mini (2)"

    registered = [call for call in calls() if call.startswith("register")]
    assert registered[0] == registering(1, "_verger._tcp", VERGER_TXT)
    assert registered[1:] == [
        registering(2, "_saturn._tcp", SATURN_TXT, "office-mini (2)"),
        registering(3, "_verger._tcp", VERGER_TXT, "office-mini (2)", index=6),
        registering(4, "_saturn._tcp", SATURN_TXT, "office-mini (2)", index=6),
    ]
    assert calls()[-4:] == [f"deallocate {number}" for number in (1, 2, 3, 4)]


async def test_loopback_is_this_machine_only(library: str, calls: Callable[[], list[str]]) -> None:
    async with advertising(library, LOOPBACK) as advertiser:
        await advertiser.start(ADVERT)
    assert f"interface={LOCAL_ONLY}" in calls()[0]


@pytest.mark.parametrize(
    ("what", "message"), [("refuse", "error -65537"), ("deny", "denies Verger the local network")]
)
async def test_a_refusal_is_an_error_with_its_reason(
    what: str, message: str, library: str, play: Play
) -> None:
    play(what)
    async with advertising(library, LAN) as advertiser:
        with pytest.raises(LanError, match=message):
            await advertiser.start(ADVERT)
        assert advertiser.name == ""


async def test_a_responder_that_says_nothing_is_given_up(
    library: str, calls: Callable[[], list[str]], play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnssd, "START_S", 0.05)
    play("silent")
    async with advertising(library, LAN) as advertiser:
        with pytest.raises(LanError, match="cannot be advertised: mDNSResponder is silent"):
            await advertiser.start(ADVERT)
    assert [call.split()[0] for call in calls()] == ["register", "deallocate"]


async def test_a_registration_that_comes_too_late_is_withdrawn(
    library: str, calls: Callable[[], list[str]], play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still under way when the server stops."""
    monkeypatch.setattr(dnssd, "START_S", 0.05)
    play("slow")
    async with advertising(library, LAN) as advertiser:
        with pytest.raises(LanError):
            await advertiser.start(ADVERT)
    assert [call.split()[0] for call in calls()] == ["register", "deallocate"]


async def test_a_responder_that_dies_takes_the_name_with_it(library: str, play: Play) -> None:
    play("die")
    async with advertising(library, LAN) as advertiser:
        await advertiser.start(ADVERT)
        await named(advertiser, "")


async def test_a_system_without_the_library_is_an_error(tmp_path: Path) -> None:
    advertiser = DnsSd([LAN], str(tmp_path / "none.so"))
    with pytest.raises(LanError, match="no DNS-SD"):
        await advertiser.start(ADVERT)
    await advertiser.stop()


async def test_stopping_twice_is_stopping_once(
    library: str, calls: Callable[[], list[str]]
) -> None:
    async with advertising(library, LAN) as advertiser:
        await advertiser.start(ADVERT)
        await advertiser.stop()
    assert [call for call in calls() if "deallocate" in call] == ["deallocate 1", "deallocate 2"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there the system's library is found")
async def test_the_systems_own_library_is_the_default() -> None:
    advertiser = make_advertiser(Backend.DNSSD, [LAN], [])
    with pytest.raises(LanError, match="no DNS-SD.*libSystem"):
        await advertiser.start(ADVERT)
    await advertiser.stop()
