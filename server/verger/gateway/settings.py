"""What a running server is made of: one frozen object, built by the CLI from config and catalogue.

Passed to `server.run`; must not know where a value came from (file, environment or flag).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from verger.costs.formulas import Machine
from verger.costs.prices import Snapshot
from verger.gateway.providers import Provider
from verger.gateway.routing import Limits
from verger.lan.advertise import Backend
from verger.log import LogFile
from verger.messages import Sampling

DEFAULT_PORT = 8374


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Both in PEM: the certificate with those that lead to its root, and its key."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One served model and the address it is served on."""

    model_id: str
    model_folder: Path
    """Holds tokenizer.json, and the weights that the engine loads; or will, once it is fetched."""
    context_tokens: int
    sampling: Sampling = Sampling()
    """What a request gets for the sampling parameters it does not name."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Foreign model name → model_id."""
    providers: tuple[Provider, ...] = ()
    """Who else can answer, in the order of preference."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 picks a free port."""
    name: str = "verger"
    instance_id: str = field(default_factory=lambda: str(uuid4()))
    """What clients know this server by, whatever its name and address."""
    bonjour: Backend = Backend.AUTO
    """What tells the office network of it, unless it listens on loopback only."""
    lan_interfaces: tuple[str, ...] = ()
    """Where it does so, by name or address; empty: where it looks like the office's network."""
    heartbeat_s: float = 5.0
    allowed_hosts: tuple[str, ...] = ()
    """Names and addresses to answer to, besides the machine's own."""
    cors_origins: tuple[str, ...] = ()
    """Whose web pages may use this server."""
    tls: TlsFiles | None = None
    """None: plain HTTP."""
    drain_s: float = 30.0
    """How long SIGTERM waits for running answers."""
    max_rows: int = 16
    target_itl_ms: float = 250.0
    """How long the engine lets running streams wait while it computes a prompt."""
    kv_bytes: int = 0
    """For running rows and cached prefixes together; 0: all that the memory allows."""
    has_prefix_cache: bool = True
    cache_dir: Path | None = None
    """Where the engine keeps prefixes on disk; None: nowhere."""
    disk_bytes: int = 0
    """The most in that folder."""
    disk_daily_bytes: int = 0
    """The most written there in a day."""
    database_file: Path | None = None
    """Where keys and the ledger are kept; None: no keys, and a ledger in memory, for tests."""
    admin_socket: Path | None = None
    """Where the commands that manage this server reach it; None: nowhere."""
    run_file: Path | None = None
    """Where it is kept how runs end; None: nowhere."""
    is_insecure: bool = False
    """Nobody is asked for a key, whoever can reach the address."""
    prices: Snapshot = Snapshot()
    """What requests would cost elsewhere."""
    machine: Machine | None = None
    """What this machine is taken to be, to estimate what its time is worth; None: not known."""
    limits: Limits = Limits()
    """When a first token is late, and how long a request may wait for others."""
    can_spill: bool = False
    """Requests for the served model may go to a provider when it cannot answer."""
    min_intelligence: str = "gpt-oss-20b"
    """A model: whoever takes over a request must be as intelligent."""
    cloud_budget_usd: float = 0.0
    """For all providers and keys together, in a calendar month (UTC)."""
    log_file: LogFile | None = None
    """Beside it the engine keeps its own; None: both write to standard error."""
    gives_up: bool = True
    """The server ends if its engine could never run; else it is tried again, seldom, and others
    are served by the cloud meanwhile."""
    stand_in_tokenizer: Path | None = None
    """Counts tokens for the cloud until the model has been fetched; None: the model is there."""
    fake_script: Path | None = None
    """Plays scripted answers instead of loading weights (for tests of clients)."""

    @property
    def has_weights(self) -> bool:
        """Whether there is a model to load."""
        return self.stand_in_tokenizer is None

    @property
    def no_weights(self) -> str:
        """Why there is none, for clients; empty if there is."""
        if self.has_weights:
            return ""
        return (
            f"{self.model_id} has not been fetched yet: `verger pull {self.model_id}`, on the "
            "machine that serves, does. It is loaded as soon as it is there."
        )

    @property
    def tokenizer_file(self) -> Path:
        """The served model's own, if it is there."""
        return self.stand_in_tokenizer or self.model_folder / "tokenizer.json"
