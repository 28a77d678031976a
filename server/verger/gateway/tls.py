"""TLS: certificate and key become the context that connections are secured with.

Called by `server` at the start and by `reload` on SIGHUP. A context is built anew each time and
replaces the old one as a whole: a pair that does not fit would break one that is in use.
"""

import ssl
import stat
from pathlib import Path

from verger.errors import ConfigError
from verger.gateway.settings import TlsFiles

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read both files; raises ConfigError."""
    _check_readable(files.cert, "certificate")
    _check_readable(files.key, "key")
    _check_private(files.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password that is wrong in any case: an encrypted key must not make the server ask.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as error:
        raise ConfigError(_explain(files, error)) from None
    return context


def _check_readable(file: Path, what: str) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot read the TLS {what} {file}: {error.strerror}") from None


def _check_private(key: Path) -> None:
    if key.stat().st_mode & _OTHERS:
        raise ConfigError(f"the TLS key {key} can be read by others: chmod 600 it")


def _explain(files: TlsFiles, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the TLS key {files.key} does not belong to the certificate {files.cert}"
    return (
        f"{files.cert} and {files.key} cannot be used for TLS: they must be a certificate and its "
        f"unencrypted key, both in PEM ({error.reason or error})"
    )
