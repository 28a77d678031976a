"""Certificates for this machine, from an authority that only the test trusts."""

import ssl
from pathlib import Path

import trustme

from verger.gateway.settings import TlsFiles


def write_certificate(authority: trustme.CA, folder: Path, *names: str) -> TlsFiles:
    """A certificate of 127.0.0.1, localhost and the names, with its key; replaces older ones."""
    files = TlsFiles(folder / "cert.pem", folder / "key.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost", *names)
    files.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    files.key.touch(mode=0o600)
    files.key.write_bytes(issued.private_key_pem.bytes())
    return files


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context that believes this authority and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context
