"""The wire between gateway and engine: typed msgspec frames, token ids only, never text.

Both processes import this page and nothing else of each other. No logic. Structs are
`array_like`: a field may only be appended, and every change bumps PROTOCOL_VERSION.
A frame is a 4-byte little-endian length followed by that many bytes of msgpack.

Gateway → engine: Hello, Submit, Cancel, LookUp, Drain.
Engine → gateway: Ready, Rejected, Progress, Tokens, Finished, Found, Stats, Heartbeat, Fatal.
"""

from enum import Enum

from msgspec import Struct

PROTOCOL_VERSION = 6
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_TOP_LOGPROBS = 20

INTERACTIVE = 0
"""`Submit.priority`: somebody waits for the answer."""
BATCH = 1
"""`Submit.priority`: gives way to interactive requests where memory is short."""
BACKGROUND = 2
"""`Submit.priority`: prefilled only while no other prompt is; gives way to everybody."""


class FinishReason(Enum):
    """Why a sequence ended. The stop id itself is the last id of the last Tokens."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class RejectReason(Enum):
    """Why the engine did not take a Submit."""

    TOO_LONG = "too_long"
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"


class Sampling(Struct, frozen=True, array_like=True):
    """How the next token is chosen. Neutral values are the defaults of the chat API.

    Penalties count generated content only: ids sampled between <|message|> and the next special.
    `seed` None means: the engine draws one. `choice` distinguishes the choices of one request.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    choice: int = 0


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """First frame of the gateway. Special ids are what the engine needs to know of Harmony."""

    version: int
    message_id: int
    """The id of <|message|>: what follows it, up to the next special, is content."""
    special_ids: list[int] = []


class Submit(Struct, frozen=True, array_like=True, tag="submit"):
    """One sequence to generate. `boundaries` are offsets into `prompt` worth a checkpoint."""

    request_id: int
    prompt: list[int]
    max_tokens: int
    """0: only compute the prompt, for a later request to find its KV."""
    stop_ids: list[int]
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    """None: none; 0: the sampled token's; n: also the n most likely (≤ MAX_TOP_LOGPROBS)."""
    boundaries: list[int] = []
    cache_salt: str = ""
    grammar: str | None = None
    priority: int = 0
    resumed_tokens: int = 0
    """How many trailing prompt ids an earlier, interrupted run of this request generated."""
    forks: list[int] = []
    """Further request ids for the same prompt, which is computed once: the choices of one answer.
    Fork i samples with `choice` i + 1; each has its own Tokens, Finished and Cancel."""
    kept_stop_ids: list[int] = []
    """Those of `stop_ids` that a later prompt repeats, such as <|call|>: they stay in the cached
    prefix, and a sequence that ends with one is likely to be continued soon."""
    caller: str = ""
    """Whose it is: the prompt of a caller with one row is computed before those of others."""


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop a sequence at the next step, also while it is prefilled or queued."""

    request_id: int


class LookUp(Struct, frozen=True, array_like=True, tag="look_up"):
    """Ask how much of a prompt is cached for a tenant; answered by one Found, between steps."""

    lookup_id: int
    prompt: list[int]
    cache_salt: str = ""


class Drain(Struct, frozen=True, array_like=True, tag="drain"):
    """Take no new Submit, finish what runs, then exit 0."""


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """The model is loaded. `device` is the backend's name, for people."""

    version: int
    model_id: str
    vocabulary_size: int
    context_tokens: int
    max_rows: int
    device: str
    load_s: float


class Rejected(Struct, frozen=True, array_like=True, tag="rejected"):
    """The Submit was not taken; nothing more follows for this request."""

    request_id: int
    reason: RejectReason


class Progress(Struct, frozen=True, array_like=True, tag="progress"):
    """Prefill of a request has advanced to `prefilled_tokens` of `prompt_tokens`. The first one,
    sent when it gets a row, tells how many of them were cached."""

    request_id: int
    prefilled_tokens: int
    prompt_tokens: int
    cached_tokens: int = 0


class Logprob(Struct, frozen=True, array_like=True):
    """Log-softmax of the raw logits for the sampled id and, most likely first, the alternatives."""

    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class RowTokens(Struct, frozen=True, array_like=True):
    """What one request got in a step. `logprobs` is parallel to `ids`, or empty."""

    request_id: int
    ids: list[int]
    logprobs: list[Logprob] = []


class Tokens(Struct, frozen=True, array_like=True, tag="tokens"):
    """One frame a step, for all rows."""

    rows: list[RowTokens]


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """The last frame of a request that was taken; always sent, also after Cancel."""

    request_id: int
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Found(Struct, frozen=True, array_like=True, tag="found"):
    """What a Submit of that prompt would not have to compute, if it got a row now."""

    lookup_id: int
    memory_tokens: int
    disk_tokens: int
    """With what would be read back first; at least `memory_tokens`."""


class CacheStats(Struct, frozen=True, array_like=True):
    """The prefix cache since the engine's start; bytes, nodes and files are those of now."""

    nodes: int = 0
    bytes: int = 0
    """Stored spans and windows; what running rows hold is not in it."""
    limit_bytes: int = 0
    """For cache and running rows together."""
    asked_tokens: int = 0
    """Prompt tokens of all requests that got a row, background ones not counted."""
    cached_tokens: int = 0
    """Those of them that were found."""
    evictions: int = 0
    preemptions: int = 0
    background_tokens: int = 0
    """Prompt tokens computed in the background; `Stats.prefill_tokens` includes them."""
    disk_files: int = 0
    disk_bytes: int = 0
    disk_written_bytes: int = 0
    disk_read_bytes: int = 0
    disk_off_reason: str = ""
    """Why nothing is written to disk; empty while it is."""
    token_bytes: int = 0
    """What one position of a prefix takes."""
    window_bytes: int = 0
    """What a checkpoint takes besides."""


class PrefillStats(Struct, frozen=True, array_like=True):
    """How prompts are cut into chunks while others decode, from the fitted cost of a step."""

    target_itl_s: float = 0.0
    chunk_tokens: int = 0
    """Of the last chunk computed beside decoding rows."""
    step_s: float = 0.0
    """What a step with such a chunk is expected to take."""
    best_tokens_s: float = 0.0
    """Prompt tokens a second in large chunks with nobody decoding."""
    efficiency: float = 1.0
    """Of the rate in large chunks, what remains with chunks of this size."""
    meets_target: bool = True
    """False where even the smallest chunk that is worth while takes longer than the target."""


class Stats(Struct, frozen=True, array_like=True, tag="stats"):
    """A snapshot, sent at most once a second and when the engine goes idle."""

    running: int
    waiting: int
    steps: int
    prefill_tokens: int
    """Prompt tokens computed since the start."""
    decode_tokens: int
    """Tokens sampled since the start."""
    kv_bytes: int
    active_bytes: int
    peak_bytes: int
    cache: CacheStats = CacheStats()
    prefill: PrefillStats = PrefillStats()
    buffer_bytes: int = 0
    """Freed, and kept for what comes; not among the active ones."""


class Heartbeat(Struct, frozen=True, array_like=True, tag="heartbeat"):
    """Sent by the loop thread itself, so that a hung GPU shows as silence."""

    steps: int


class Fatal(Struct, frozen=True, array_like=True, tag="fatal"):
    """The engine cannot go on and exits. `is_permanent`: a restart would fail the same way."""

    message: str
    is_permanent: bool = False


ToEngine = Hello | Submit | Cancel | LookUp | Drain
FromEngine = Ready | Rejected | Progress | Tokens | Finished | Found | Stats | Heartbeat | Fatal
