"""A Verger as the client commands see it: their few routes, played on loopback."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from verger.lan.browse import Found
from verger.lan.records import Advert

ID = "6f1c1f6e-52a5-4d7a-9a56-0b8d2f6d3f10"
OTHER_ID = "0c0ffee0-0000-4000-8000-000000000000"
MODEL_ID = "gpt-oss-20b"
CONTEXT_TOKENS = 131_072


@dataclass
class FakeInstance:
    """What it says can be changed while it runs; what it was asked is in `requests`."""

    port: int
    id: str = ID
    key: str | None = None
    """Wanted by all routes but the open one."""
    is_ready: bool = True
    is_tls: bool = False
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """Path → status, headers and body, in place of the usual ones."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and authorization of each request."""

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def keys_seen(self) -> set[str]:
        """Every authorization that was ever sent here."""
        return {sent for _, sent in self.requests if sent is not None}

    def found(self, name: str = "office-mini", **changes: Any) -> Found:
        """What browsing would say of it."""
        advert = Advert(
            **{
                "name": name,
                "port": self.port,
                "id": self.id,
                "model_ids": (MODEL_ID,),
                "needs_key": self.key is not None,
                "has_tls": self.is_tls,
                "version": "1",
                **changes,
            }
        )
        return Found(advert, "office-mini.local", ("127.0.0.1",))

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((path, authorization))
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/health":
            return (200 if self.is_ready else 503), {"x-verger-id": self.id}, b"{}"
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {}, b"{}"
        return 200, {}, json.dumps(_BODIES[path]).encode()


_BODIES: dict[str, Any] = {
    "/v1/models": {
        "object": "list",
        "data": [{"id": MODEL_ID, "object": "model", "context_length": CONTEXT_TOKENS}],
    },
    "/v1/status": {"rows": {"max": 16, "running": 3, "waiting": 1, "queued": 4}},
}


@contextmanager
def fake_instance(certificate: Path | None = None) -> Iterator[FakeInstance]:
    """Serve until the block is left, with TLS if there is a certificate (and its key) in PEM."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("authorization")
            status, headers, body = instance.answer(self.path, authorization)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up in the handshake or in the middle of a long body."""

    with Server(("127.0.0.1", 0), Handler) as server:
        instance = FakeInstance(server.server_address[1], is_tls=certificate is not None)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield instance
        finally:
            server.shutdown()
            thread.join()


def write_certificate(path: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    # Of its own: two of the same name in one trust store hide each other.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"office-mini {path.stem}")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), True)
        .sign(private, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    pem += private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)
    return path
