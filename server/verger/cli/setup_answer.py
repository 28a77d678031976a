"""An answer of the service that comes in over the office network, as a colleague's would.

Called by `verger setup`, with a key of the service. Every wait is bounded. Must not know how the
service was installed.
"""

import msgspec
from msgspec import Struct

from verger.cli.session import greet
from verger.config import Config
from verger.connect.address import Address, make_address
from verger.errors import InstallError, LanError, Unreachable
from verger.lan.interfaces import choose_interfaces, reachable_addresses

QUESTION = "Say in one short sentence that you are ready for the office."
ANSWER_LIMIT_S = 180.0
MAX_TOKENS = 512
MAX_SHOWN_CHARACTERS = 300
_NEXT = "look at `verger doctor` and `verger service logs`, then: sudo verger setup"


class _Message(Struct, frozen=True):
    content: str | None = None


class _Choice(Struct, frozen=True):
    message: _Message


class _Completion(Struct, frozen=True):
    choices: list[_Choice]


def lan_address(config: Config) -> Address:
    """Where colleagues reach the service. Raises InstallError."""
    server = config.server
    named = [part.strip() for part in config.lan.interfaces.split(",") if part.strip()]
    try:
        hosts = reachable_addresses(choose_interfaces(named), server.host)
        if not hosts:
            raise LanError(f"the service listens on {server.host}, where no other machine gets")
        # IPv4 where there is one: every client knows how to write it.
        host = min(hosts, key=lambda host: ":" in host)
        return make_address(host, server.port, is_tls=bool(server.tls_cert))
    except (LanError, ValueError) as error:
        raise InstallError(
            f"the service has no address on the office network: {error}; connect this Mac to it, "
            'let config.toml say host = "0.0.0.0" under [server], then: sudo verger setup'
        ) from None


def ask(address: Address, key: str, model_id: str, instance_id: str) -> str:
    """What the model says, once the server has shown that it is the one meant. Raises
    InstallError."""
    body = {
        "model": model_id,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "reasoning_effort": "low",
    }
    try:
        greeting = greet(address)
        if greeting.id != instance_id:
            raise InstallError(f"another server answers at {address.root_url}; {_NEXT}")
        content = msgspec.json.encode(body)
        answer = greeting.session.post("/v1/chat/completions", content, key, ANSWER_LIMIT_S)
    except Unreachable as error:
        raise InstallError(f"the service runs, but {error}; {_NEXT}") from None
    said = _said(answer.body) if answer.status == 200 else None
    if not said:
        shown = answer.body[:MAX_SHOWN_CHARACTERS].decode(errors="replace")
        raise InstallError(
            f"the service runs, but a request over {address.root_url} was answered with status "
            f"{answer.status} and no text ({shown!r}); {_NEXT}"
        )
    return said[:MAX_SHOWN_CHARACTERS]


def _said(body: bytes) -> str | None:
    try:
        choices = msgspec.json.decode(body, type=_Completion).choices
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return (choices[0].message.content or "").strip() if choices else None
