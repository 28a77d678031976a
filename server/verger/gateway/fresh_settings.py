"""The part of SIGHUP that is the configuration, its certificate and its providers.

Added to the reloader by `server`. Must not know where settings come from: the CLI says how to read
them again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from verger.errors import ConfigError
from verger.gateway.reload import Apply, Read
from verger.gateway.service import Service
from verger.gateway.settings import ServerSettings
from verger.gateway.tls import tls_context
from verger.log import key_values

logger = logging.getLogger("verger.gateway")


@dataclass(frozen=True, slots=True)
class FreshSettings:
    """What a running server takes over, and the names of changed settings that it cannot."""

    settings: ServerSettings
    needs_restart: tuple[str, ...] = ()


ReadSettings = Callable[[], FreshSettings]
"""Raises ConfigError."""


def settings_part(service: Service, read_settings: ReadSettings) -> Read:
    """Replaces the settings, with the admission's limits, the TLS context and the providers."""

    def read() -> Apply:
        fresh = read_settings()
        files = fresh.settings.tls
        if (files is None) != (service.tls is None):
            raise ConfigError("TLS cannot be turned on or off in a running server: restart it")
        context = None if files is None else tls_context(files)

        def apply() -> None:
            service.settings, service.tls = fresh.settings, context
            service.admission.replace_limits(fresh.settings.limits)
            service.cloud.replace(fresh.settings.providers)
            if fresh.needs_restart:
                names = ",".join(fresh.needs_restart)
                logger.warning(key_values(event="restart_needed", settings=names))

        return apply

    return read
