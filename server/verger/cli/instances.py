"""Which server a client command speaks to, and whether it is the one it was before.

Used by `discover`, `env` and `connect`. Adverts are claims of strangers: what is not plainly a
name and a host is left out here. No key is sent before `check_identity` has passed, and never to a
server that is not pinned.

    --url URL         that address, under NAME or the URL's own name
    NAME, pinned      where it was last time; if nothing answers there, what is advertised as NAME
    NAME              what is advertised as NAME
    nothing           the only one that is advertised; if there is none, the only one that is pinned
"""

import ipaddress
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from verger import paths
from verger.cli.pins import TRUSTED, Pin, Pins, load_pins
from verger.connect.address import (
    DEFAULT_PORT,
    Address,
    is_model_id,
    is_name,
    make_address,
    parse_url,
)
from verger.errors import EXIT_USAGE, IdentityChanged, InstanceError, Unreachable, VergerError

if TYPE_CHECKING:
    from verger.cli.session import Certificate, Greeting, Session
    from verger.lan.browse import Found

MAX_INSTANCES = 64
"""How many adverts are looked at; a network that shows more is not an office's."""
MAX_NAME_CHARACTERS = 63
BROWSE_S = 3.0

NameArgument = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Which server; needed where there are more.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="Do not browse: http://HOST:PORT, https://HOST, or a host with our port."),
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, max=60.0, help="Seconds to wait for adverts.")
]
InterfacesOption = Annotated[
    str, typer.Option(help="Browse on these interfaces only: names or addresses, with commas.")
]

WHAT_TO_TRY = (
    "no Verger shows itself on this network. If one runs: give its address with "
    "--url http://HOST:8374 (a server shows itself only where it serves the LAN); on a Mac, allow "
    "this program under System Settings, Privacy & Security, Local Network; on an office Wi-Fi "
    "multicast may be blocked, and a VPN does not carry it"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server before anybody has spoken to it. What is None was not advertised."""

    name: str
    address: Address
    id: str | None = None
    model_ids: tuple[str, ...] = ()
    needs_key: bool | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of a command ask for."""

    name: str | None = None
    url: str | None = None
    timeout_s: float = BROWSE_S
    interfaces: str = ""
    is_repinning: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A server that is the one it was, and a session with it."""

    pin: Pin
    session: "Session"
    is_ready: bool
    is_new: bool
    pins: Pins


def open_instance(wanted: Wanted) -> Opened:
    """Find the server, check that it is the one it was, and remember it.

    Raises InstanceError, and typer.Exit where a NAME has to be given.
    """
    # Imported late, like all that costs time: httpx takes a tenth of a second.
    from verger.cli.session import greet

    pins = load_pins(paths.pins_file())
    candidate, greeting = _greeted_where_it_was(wanted, pins)
    if candidate is None or greeting is None:
        candidate = _candidate(wanted, pins)
        greeting = greet(candidate.address)
    known = None if wanted.is_repinning else pins.find(candidate.name)
    certificate = greeting.session.certificate
    check_identity(candidate, greeting.id, certificate, known)
    pin = Pin(
        name=candidate.name,
        id=greeting.id,
        host=candidate.address.host,
        port=candidate.address.port,
        certificate=_pinned_certificate(certificate, known),
        key=known.key if known else None,
    )
    if pin != known:
        pins.put(pin)
    return Opened(pin, greeting.session, greeting.is_ready, known is None, pins)


def check_identity(
    candidate: Candidate, server_id: str, certificate: "Certificate | None", known: Pin | None
) -> None:
    """Raises IdentityChanged unless the server is what was advertised and what was pinned."""
    if candidate.id is not None and candidate.id != server_id:
        raise IdentityChanged(
            f"{candidate.address.root_url} is not the {candidate.name} that is advertised: "
            f"it calls itself {server_id}, the advert says {candidate.id}"
        )
    if known is None:
        return
    changes = list(_changes(known, candidate.address, server_id, certificate))
    if changes:
        raise IdentityChanged(
            f"{candidate.name} IS NOT THE SERVER THAT WAS USED UNDER THIS NAME: "
            f"{'; '.join(changes)}. No key was sent. If whoever runs it says that this is right: "
            f'verger env "{candidate.name}" --repin (its key has to be given again)'
        )


def candidate_of(found: "Found") -> Candidate | None:
    """What an advert says; None if it is not fit to be shown. May ask the system's resolver."""
    advert = found.advert
    host = _usable_host(found)
    if host is None or not is_name(advert.name) or advert.path != "/v1":
        return None
    try:
        address = make_address(host, advert.port, is_tls=advert.has_tls)
    except ValueError:
        return None
    models = tuple(id for id in advert.model_ids if is_model_id(id))
    return Candidate(advert.name, address, advert.id, models, advert.needs_key)


def candidate_of_url(url: str, name: str | None = None) -> Candidate:
    """Raises BadParameter."""
    try:
        address = parse_url(url)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    return Candidate(_checked_name(name) or name_of(address), address)


def name_of(address: Address) -> str:
    """The name under which a server is remembered that was given as a URL."""
    place = address.host if address.port == DEFAULT_PORT else address.authority
    return re.sub(r"[^\w.-]", "-", place).strip("-")[:MAX_NAME_CHARACTERS]


def find(timeout_s: float, interfaces: str) -> list["Found"]:
    """Browse; the first MAX_INSTANCES adverts. Raises InstanceError."""
    # Imported late: zeroconf takes a fifth of a second.
    from verger.lan.browse import browse

    names = [name.strip() for name in interfaces.split(",") if name.strip()]
    try:
        return browse(timeout_s, names)[:MAX_INSTANCES]
    except (VergerError, OSError, ValueError) as error:
        raise InstanceError(f"cannot browse the network ({error}); give --url instead") from None


def _greeted_where_it_was(wanted: Wanted, pins: Pins) -> tuple[Candidate | None, "Greeting | None"]:
    """A pinned server that still answers need not be looked for."""
    from verger.cli.session import greet

    pin = pins.find(wanted.name) if wanted.name else None
    if pin is None or wanted.url is not None or wanted.is_repinning:
        return None, None
    try:
        return Candidate(pin.name, pin.address), greet(pin.address)
    except Unreachable:
        return None, None


def _candidate(wanted: Wanted, pins: Pins) -> Candidate:
    if wanted.url is not None:
        return candidate_of_url(wanted.url, wanted.name)
    name = _checked_name(wanted.name)
    found, obstacle = _browsed(wanted)
    fitting = [one for one in found if name in (None, one.advert.name)]
    if len(fitting) > 1:
        raise _which_one(fitting)
    candidate = candidate_of(fitting[0]) if fitting else None
    if candidate is not None:
        return candidate
    pin = _only_pin(name, pins)
    if pin is None:
        known = ", ".join([one.advert.name for one in found] or pins.names)
        raise InstanceError(obstacle + (f". Known: {known}" if known else ""))
    return Candidate(pin.name, pin.address)


def _browsed(wanted: Wanted) -> tuple[list["Found"], str]:
    """What is advertised, and what to say if that is not enough."""
    try:
        found = find(wanted.timeout_s, wanted.interfaces)
    except InstanceError as error:
        return [], str(error)
    return [one for one in found if is_name(one.advert.name)], WHAT_TO_TRY


def _which_one(fitting: Sequence["Found"]) -> typer.Exit:
    names = ", ".join(one.advert.name for one in fitting)
    print(f"verger: there are several; say which one: {names}", file=sys.stderr)
    return typer.Exit(EXIT_USAGE)


def _only_pin(name: str | None, pins: Pins) -> Pin | None:
    """Where multicast is blocked, what was used before is still there."""
    if name is not None:
        return pins.find(name)
    return pins.find(pins.names[0]) if len(pins.names) == 1 else None


def _usable_host(found: "Found") -> str | None:
    """The host's name where this system resolves it as advertised, else its address.

    A name outlives a change of the address, but not every system resolves names in .local. With TLS
    only the name will do.
    """
    from verger.cli.session import addresses_of

    addresses = [text for text in found.addresses if _is_routable(text)]
    try:
        host = make_address(found.host, found.advert.port, is_tls=False).host
    except ValueError:
        return addresses[0] if addresses else None
    if found.advert.has_tls or addresses_of(host) & set(found.addresses):
        return host
    return addresses[0] if addresses else None


def _is_routable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.version == 6 and address.is_link_local)


def _changes(
    known: Pin, address: Address, server_id: str, certificate: "Certificate | None"
) -> list[str]:
    changes = []
    if server_id != known.id:
        changes.append(f"its id is {server_id}, it was {known.id}")
    if (certificate is None) != (known.certificate is None):
        changes.append("it speaks TLS now" if certificate else "it does not speak TLS any more")
    elif known.certificate == TRUSTED and certificate and not certificate.is_trusted:
        changes.append("this system does not trust its certificate any more")
    elif known.certificate not in (None, TRUSTED) and certificate:
        if certificate.fingerprint != known.certificate:
            changes.append(f"its certificate is {certificate.fingerprint}")
    # A certificate that only it can show is proof wherever it is; anything else can be copied.
    is_proved = known.certificate not in (None, TRUSTED)
    if not is_proved and (address.host, address.port) != (known.host, known.port):
        changes.append(f"it is at {address.authority}, it was at {known.address.authority}")
    return changes


def _pinned_certificate(certificate: "Certificate | None", known: Pin | None) -> str | None:
    if known is not None or certificate is None:
        return known.certificate if known else None
    return TRUSTED if certificate.is_trusted else certificate.fingerprint


def _checked_name(name: str | None) -> str | None:
    if name is not None and not is_name(name):
        raise typer.BadParameter("not a server's name", param_hint="NAME")
    return name
