"""What all endpoints share: the served model, its vocabulary, the engine, its gate and the clocks.

Built once by `server` (and by tests), passed to every endpoint. Belongs to the event loop.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ssl import SSLContext
from uuid import uuid4

from msgspec.structs import replace

from verger import __version__
from verger.api.status import Lan
from verger.config import is_loopback
from verger.formats.conversation import Conversation
from verger.formats.dates import PinnedDates
from verger.formats.vocabulary import Vocabulary
from verger.gateway.accounting import Accounts
from verger.gateway.admission import Admission
from verger.gateway.cloud import Cloud
from verger.gateway.engine_client import EngineClient
from verger.gateway.key_ring import KeyRing
from verger.gateway.ledger import Ledger
from verger.gateway.reload import Reloader
from verger.gateway.run_record import Start
from verger.gateway.settings import ServerSettings
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

MAX_NOTED_PARAMETERS = 256
NOT_ADVERTISED = Lan(backend="none", name=None, interfaces=(), off_reason="the server does not run")


@dataclass(slots=True)
class Service:
    """One per process."""

    settings: ServerSettings
    """Replaced as a whole on SIGHUP: ask for them each time."""
    vocabulary: Vocabulary
    engine: EngineClient
    dates: PinnedDates
    monotonic_s: Callable[[], float] = time.monotonic
    unix_s: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: uuid4().hex
    is_draining: bool = False
    tls: SSLContext | None = None
    """What connections are secured with; None where the server speaks plain HTTP."""
    reloader: Reloader = field(default_factory=Reloader)
    """What SIGHUP reads again."""
    own_names: set[str] = field(default_factory=set)
    """What this machine is called, and what Bonjour calls it."""
    start: Start = Start()
    """Why the server was started."""
    cloud: Cloud = field(default_factory=Cloud)
    lan: Lan = NOT_ADVERTISED
    """What the network is being told, kept by `advertising`."""
    keys: KeyRing = field(init=False)
    accounts: Accounts = field(init=False)
    admission: Admission = field(init=False)
    started_s: float = field(init=False)
    started_unix_s: int = field(init=False)
    system_fingerprint: str = field(init=False)
    _noted_parameters: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        settings = self.settings
        self.admission = Admission(
            self.engine, settings.model_id, settings.limits, clock=self.monotonic_s
        )
        self.started_s = self.monotonic_s()
        self.started_unix_s = int(self.unix_s())
        self.keys = KeyRing(
            None if self.settings.is_insecure else self.settings.database_file,
            is_loopback=is_loopback(self.settings.host),
            is_insecure=self.settings.is_insecure,
            unix_s=self.unix_s,
        )
        self.accounts = Accounts(
            ledger=Ledger(self.settings.database_file),
            model_id=self.settings.model_id,
            prices=self.settings.prices,
            machine=self.settings.machine,
            unix_s=self.unix_s,
        )
        served = f"{self.settings.model_id} {__version__}"
        self.system_fingerprint = f"fp_{hashlib.sha256(served.encode()).hexdigest()[:10]}"

    @property
    def context_tokens(self) -> int:
        """What the catalogue and the running engine both allow."""
        ready = self.engine.ready
        configured = self.settings.context_tokens
        return configured if ready is None else min(configured, ready.context_tokens)

    @property
    def vocabulary_size(self) -> int:
        """How many token ids there are; of a model that is not here yet, others know."""
        return self.vocabulary.size if self.settings.has_weights else sys.maxsize

    @property
    def host_names(self) -> set[str]:
        """The hosts that this server answers to, besides private addresses."""
        settings = self.settings
        name = settings.name.lower()
        ours = {"localhost", settings.host.lower(), name, f"{name}.local"}
        return ours | self.own_names | set(settings.allowed_hosts)

    def pin_date(self, tenant: str, conversation: Conversation) -> Conversation:
        """The conversation with the date on which the tenant began it."""
        today = datetime.fromtimestamp(self.unix_s(), UTC).astimezone().date().isoformat()
        return replace(conversation, date=self.dates.date_for(tenant, conversation, today))

    def count_tokens(self, text: str) -> int:
        """How long a text is for the served model; for other models a good guess."""
        return len(self.vocabulary.encode(text))

    def note_unknown_parameters(self, names: tuple[str, ...]) -> None:
        """Log each name the first time a client sends it."""
        for name in names:
            if (
                name in self._noted_parameters
                or len(self._noted_parameters) >= MAX_NOTED_PARAMETERS
            ):
                continue
            self._noted_parameters.add(name)
            logger.warning(key_values(event="unknown_parameter", name=name[:64]))
