"""A process that advertises and browses as it is told: `python -m tests.lan.player`.

The tests themselves may not multicast (conftest.py refuses it), so that whatever does lives in a
process of its own, in a network of its own where there can be one.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tests.lan.networks import Host
from verger.errors import LanError
from verger.lan.advertise import Advertiser, Backend, make_advertiser
from verger.lan.interfaces import choose_interfaces, reachable_addresses
from verger.lan.records import Advert

ID = "6b0f2b1e-3a5d-4c63-9a0e-0c7f5a1d2e3f"
ADVERT = Advert("office-mini", 8374, ID, ("gpt-oss-20b",), True, False, "0.1.0")


@dataclass(slots=True)
class Player:
    """The test's end of the pipes."""

    process: subprocess.Popen[str]

    def start(self, advert: Advert = ADVERT) -> str:
        """Returns the name that is used."""
        return str(self._do("start", asdict(advert)))

    def update(self, advert: Advert) -> None:
        self._do("update", asdict(advert))

    def stop(self) -> None:
        self._do("stop")

    def browse(self, timeout_s: float = 1.5) -> list[dict[str, Any]]:
        """What was found, each with its `advert`, `host` and `addresses`."""
        return list(self._do("browse", timeout_s))

    def kill(self) -> None:
        """As the system would."""
        self.process.kill()
        self.process.wait()

    def _do(self, what: str, argument: object = None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([what, argument]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, "the player has died"
        answer = json.loads(line)
        if "error" in answer:
            raise LanError(answer["error"])
        return answer["answer"]


@contextmanager
def player(*interfaces: str, on: Host | None = None, bound_to: str = "0.0.0.0") -> Iterator[Player]:
    """A player on a host, speaking through these interfaces."""
    command = [sys.executable, "-m", "tests.lan.player", bound_to, *interfaces]
    with subprocess.Popen(
        command if on is None else on.command(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Player(process)
        finally:
            process.kill()


async def main() -> None:
    """The other end: one line of JSON is an order, and one its answer."""
    bound_to, *interfaces = sys.argv[1:]
    stage = _Stage(interfaces, bound_to)
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, argument = json.loads(line)
        try:
            answer = {"answer": await stage.act(what, argument)}
        except LanError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


class _Stage:
    def __init__(self, interfaces: Sequence[str], bound_to: str) -> None:
        self._interfaces = interfaces
        self._bound_to = bound_to
        self._advertiser: Advertiser | None = None

    async def act(self, what: str, argument: Any) -> Any:
        if what == "browse":
            from verger.lan.browse import browse

            found = await asyncio.to_thread(browse, argument, self._interfaces)
            return [asdict(one) for one in found]
        if what == "start":
            chosen = choose_interfaces(self._interfaces)
            addresses = reachable_addresses(chosen, self._bound_to)
            self._advertiser = make_advertiser(Backend.ZEROCONF, chosen, addresses)
            return await self._advertiser.start(_advert(argument))
        assert self._advertiser is not None
        if what == "update":
            return await self._advertiser.update(_advert(argument))
        return await self._advertiser.stop()


def _advert(fields: dict[str, Any]) -> Advert:
    return Advert(**{**fields, "model_ids": tuple(fields["model_ids"])})


if __name__ == "__main__":
    asyncio.run(main())
