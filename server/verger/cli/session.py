"""HTTP to one server, and who it says it is. The client commands' only use of httpx.

Used by `instances` and `discover`. Every answer is bounded in time and size, nothing is redirected,
no proxy is asked. With TLS, a session accepts exactly what `observe_certificate` saw: a certificate
that the system trusts for this host, or that one certificate. Must not know pins.
"""

import hashlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import httpx
import msgspec
import truststore
from msgspec import Struct

from verger import __version__
from verger.connect.address import Address, is_model_id
from verger.errors import Unreachable

STEP_S = 3.0
"""For a connection, and for each part of an answer."""
ANSWER_S = 6.0
"""For a whole answer, however slowly it drips."""
RESOLVE_S = 1.5
MAX_BODY_BYTES = 1024 * 1024
ID_HEADER = "x-verger-id"
HEALTH = "/v1/health"

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server showed."""

    fingerprint: str
    """SHA-256 of the certificate, as `sha256:` and hex."""
    is_trusted: bool
    """By this system, for this host name."""
    der: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ModelCard(Struct, frozen=True):
    """What /v1/models says of a model; servers other than ours leave out `context_length`."""

    id: str
    context_length: int = 0


class _ModelList(Struct, frozen=True):
    data: list[ModelCard]


class Load(Struct, frozen=True):
    """Answers that are generated, and that wait, of /v1/status."""

    running: int
    waiting: int
    queued: int


class _Status(Struct, frozen=True):
    rows: Load


class Session:
    """Requests to one address."""

    def __init__(self, address: Address, certificate: Certificate | None) -> None:
        self.address = address
        self.certificate = certificate

    def get(self, path: str, key: str | None = None) -> Answer:
        """Raises Unreachable. The key goes to this address and nowhere else."""
        headers = {"accept-encoding": "identity", "user-agent": f"verger/{__version__}"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return self._within(lambda: self._exchange("GET", path, headers))

    def post(self, path: str, body: bytes, key: str, limit_s: float) -> Answer:
        """The same with a body, JSON, for an answer that may take longer."""
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return self._within(lambda: self._exchange("POST", path, headers, body, limit_s), limit_s)

    def models(self, key: str | None) -> list[ModelCard] | None:
        """What is served; None if the server wants another key. Raises Unreachable."""
        answer = self.get("/v1/models", key)
        if answer.status in (401, 403):
            return None
        cards = self._decoded(answer, _ModelList).data
        return [card for card in cards if is_model_id(card.id)]

    def load(self, key: str | None) -> Load | None:
        """None if the server wants another key. Raises Unreachable."""
        answer = self.get("/v1/status", key)
        return None if answer.status in (401, 403) else self._decoded(answer, _Status).rows

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes = b"",
        step_s: float = STEP_S,
    ) -> Answer | str:
        """A sentence in place of an answer says why there is none."""
        context, url = _context(self.certificate), self.address.root_url + path
        try:
            with (
                httpx.Client(verify=context, timeout=step_s, trust_env=False) as client,
                client.stream(method, url, headers=headers, content=content) as response,
            ):
                body = b""
                for part in response.iter_raw():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        return f"its answer is longer than {MAX_BODY_BYTES} bytes"
                return Answer(response.status_code, response.headers, body)
        except (httpx.HTTPError, ssl.SSLError, ValueError) as error:
            return str(error) or type(error).__name__

    def _within(self, work: Callable[[], Answer | str], limit_s: float = ANSWER_S) -> Answer:
        answer = within(limit_s, work)
        if isinstance(answer, Answer):
            return answer
        reason = answer or f"no answer within {limit_s:g} s"
        raise Unreachable(f"cannot reach {self.address.root_url}: {reason}")

    def _decoded(self, answer: Answer, expected: type[R]) -> R:
        try:
            if answer.status == 200:
                return msgspec.json.decode(answer.body, type=expected)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        raise Unreachable(
            f"{self.address.root_url} does not answer as a Verger would (status {answer.status})"
        )


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first words of a server, before any key is sent."""

    session: Session
    id: str
    is_ready: bool


def greet(address: Address) -> Greeting:
    """Ask a server who it is, over a route that needs no key. Raises Unreachable."""
    session = Session(address, observe_certificate(address) if address.is_tls else None)
    answer = session.get(HEALTH)
    if answer.status == 403:
        raise Unreachable(
            f"{address.root_url} does not answer to this host name: use the machine's own name or "
            "address, or have whoever runs it add the name to [server] allowed_hosts"
        )
    try:
        server_id = str(UUID(answer.headers.get(ID_HEADER, "")))
    except ValueError:
        raise Unreachable(
            f"what answers at {address.root_url} is no Verger: it sends no {ID_HEADER}"
        ) from None
    return Greeting(session, server_id, is_ready=answer.status == 200)


def observe_certificate(address: Address) -> Certificate:
    """What the server shows to whoever connects. Raises Unreachable."""
    seen = within(ANSWER_S, lambda: _observe(address))
    if isinstance(seen, Certificate):
        return seen
    reason = seen or f"no handshake within {ANSWER_S:g} s"
    raise Unreachable(f"cannot reach {address.root_url}: {reason}")


def addresses_of(host: str) -> set[str]:
    """What the system's resolver knows of a name; empty if that is nothing, or takes too long."""

    def resolve() -> set[str]:
        try:
            return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
        except (OSError, UnicodeError):
            return set()

    return within(RESOLVE_S, resolve) or set()


def within(limit_s: float, work: Callable[[], R]) -> R | None:
    """None once the limit has passed; see `all_within`."""
    return all_within(limit_s, [work])[0]


def all_within(limit_s: float, works: Sequence[Callable[[], R]]) -> list[R | None]:
    """Do them all at once; None in place of what has not ended within the limit.

    That is left behind in a thread that nobody waits for: neither a resolver nor a server that
    drips can be interrupted.
    """
    deadline_s = time.monotonic() + limit_s
    results: list[queue.Queue[R]] = [queue.Queue(maxsize=1) for _ in works]
    for work, result in zip(works, results, strict=True):
        threading.Thread(target=_deliver, args=(work, result), daemon=True).start()
    return [_taken(result, deadline_s - time.monotonic()) for result in results]


def _deliver(work: Callable[[], R], result: "queue.Queue[R]") -> None:
    result.put(work())


def _taken(result: "queue.Queue[R]", limit_s: float) -> R | None:
    try:
        return result.get(timeout=max(0.0, limit_s))
    except queue.Empty:
        return None


def _observe(address: Address) -> Certificate | str:
    try:
        try:
            der, is_trusted = _handshake(address, _trusting()), True
        except ssl.SSLCertVerificationError:
            der, is_trusted = _handshake(address, _unverified()), False
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return Certificate(f"sha256:{hashlib.sha256(der).hexdigest()}", is_trusted, der)


def _handshake(address: Address, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection((address.host, address.port), timeout=STEP_S) as raw,
        context.wrap_socket(raw, server_hostname=address.host) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
        assert der is not None
        return der


def _context(certificate: Certificate | None) -> ssl.SSLContext:
    if certificate is None:
        return _unverified()  # Never used: there is no TLS.
    if certificate.is_trusted:
        return _trusting()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # This certificate and no other; whose name it carries does not matter then.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate.der)
    return context


def _trusting() -> ssl.SSLContext:
    """The platform's own trust store: an office's authority stands there, and not in certifi."""
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _unverified() -> ssl.SSLContext:
    """To look at a certificate; nothing is sent over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
