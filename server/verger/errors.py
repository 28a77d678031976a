"""Every error that a user of Verger can meet, each with its code, status and what to do next.

Imported by all layers; must not import anything of Verger.

    VergerError
    ├── RequestError            4xx: the request is at fault, retrying it unchanged is useless
    │   ├── InvalidRequest          400  wrong type, orphan tool result, NaN, not JSON …
    │   ├── UnsupportedParameter    400  would change the answer and is not implemented
    │   ├── ContextLengthExceeded   400  prompt longer than the model's context
    │   ├── AnswerTooLong           400  not finished after hours
    │   ├── HostNotAllowed          403  a Host header that is not one of ours: DNS rebinding
    │   ├── OriginNotAllowed        403  another site's web page wants something done
    │   ├── BudgetExhausted         402  what the cloud may cost is spent
    │   ├── ProviderRefused         400  a cloud provider does not take the request as it is
    │   ├── ProviderContextExceeded 400  the prompt is too long for every provider that was asked
    │   ├── RouteForbidden          403  the key may not be served there
    │   ├── ModelNotFound           404  names what there is
    │   ├── AuthenticationFailed    401  no key, or none that is known here
    │   ├── RouteNotFound           404
    │   ├── MethodNotAllowed        405
    │   ├── RequestTimeout          408  the body did not arrive in time
    │   ├── BodyTooLarge            413
    │   ├── UrlTooLong              414
    │   └── HeadersTooLarge         431
    ├── RateLimited             429: a limit of the key, or of wrong keys, is reached; retry later
    ├── ServiceError            5xx: the service is at fault, retry later
    │   ├── EngineUnavailable       503  the engine died, or is still loading
    │   ├── Overloaded              503  a queue is full
    │   ├── KeysUnavailable         503  whose key it is cannot be found out
    │   ├── LedgerUnavailable       503  nothing can be spent that cannot be accounted for
    │   ├── ProviderUnavailable     503  no cloud provider could answer
    │   ├── UpstreamInterrupted     502  a cloud provider broke off in the middle of its answer
    │   └── InternalError           500  a defect of ours; the log has the traceback
    ├── StartupError            exit code 3: one line on stderr, no traceback
    │   ├── ConfigError
    │   ├── ModelFolderError
    │   ├── DownloadError       a model cannot be fetched
    │   ├── PortInUse
    │   ├── DatabaseError       the state database cannot be used
    │   ├── NoKeys              open to the network, and nobody has a key
    │   ├── KeyNameTaken
    │   ├── KeyNotFound
    │   ├── LedgerError             the ledger cannot be opened
    │   ├── SnapshotError           prices or indices are damaged, or cannot be compared
    │   ├── InstanceError           a client found no server that it can use
    │   │   ├── Unreachable
    │   │   └── IdentityChanged     it is not the server that was used before
    │   ├── BackupError             an archive cannot be made, or must not be restored
    │   ├── PlistError              a launchd job is not what launchd or Verger accepts
    │   └── InstallError            the service cannot be installed or managed
    │       ├── NotAMac             exit code 4: this machine has no launchd
    │       ├── StepFailed          exit code 5: a step did not do what it should
    │       └── ServiceDrift        exit code 6: what is there is not what Verger has put there
    └── LanError                multicast DNS cannot be spoken; a server goes on without it
"""

from typing import ClassVar

EXIT_USAGE = 2
EXIT_CANNOT_START = 3
EXIT_NOT_A_MAC = 4
EXIT_STEP_FAILED = 5
EXIT_DRIFT = 6
EXIT_UNWELL = 7


class VergerError(Exception):
    """Base of all of Verger's errors; `str(error)` is the sentence shown to the user."""


class ReplyError(VergerError):
    """An error that can be sent to a client.

    `param` names the offending request field, `retry_after_s` becomes the Retry-After header.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    is_partial: ClassVar[bool] = False
    """A part of the answer has come, and no more will."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class RequestError(ReplyError):
    """The request is at fault."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """A field has a wrong type or value, or fields contradict each other."""


class UnsupportedParameter(RequestError):
    """A parameter that would change the answer and is not implemented."""

    code = "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    """The prompt is longer than the model's context, or than what this machine holds of it."""

    code = "context_length_exceeded"

    def __init__(
        self, context_tokens: int, prompt_tokens: int, model_tokens: int | None = None
    ) -> None:
        """`model_tokens` is the model's own context where that is known to be longer."""
        limit = (
            ""
            if model_tokens is None
            else (
                f" This machine's memory holds {context_tokens} tokens; the model itself takes "
                f"{model_tokens}."
            )
        )
        super().__init__(
            f"This model's maximum context length is {context_tokens} tokens. However, your "
            f"messages resulted in {prompt_tokens} tokens. Please reduce the length of the "
            f"messages.{limit}",
            param="messages",
        )


class AnswerTooLong(RequestError):
    """The answer was not finished after all the time that one may take."""

    code = "answer_too_long"


class HostNotAllowed(RequestError):
    """The Host header is missing, doubled, or names a host that is not this server."""

    status = 403
    code = "host_not_allowed"


class OriginNotAllowed(RequestError):
    """A web page of another origin sent a request that may change something."""

    status = 403
    code = "origin_not_allowed"


class BudgetExhausted(RequestError):
    """The worst case of a call exceeds what is left of a budget."""

    status = 402
    code = "budget_exhausted"
    type = "insufficient_quota"


class ProviderRefused(RequestError):
    """A cloud provider does not take the request as it is; the message has its own words."""

    code = "provider_refused"


class ProviderContextExceeded(RequestError):
    """The prompt is longer than any provider that was asked can take."""

    code = "context_length_exceeded"


class RouteForbidden(RequestError):
    """The model is served in a place to which this key's requests may not go."""

    status = 403
    code = "route_not_allowed"


class ModelNotFound(RequestError):
    """The request names a model that is neither served nor an alias."""

    status = 404
    code = "model_not_found"


class AuthenticationFailed(RequestError):
    """The request carries no key, or one that is unknown, revoked or expired."""

    status = 401
    code = "invalid_api_key"


class RouteNotFound(RequestError):
    """No such path."""

    status = 404
    code = "route_not_found"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    """The request's body exceeds the limit."""

    status = 413
    code = "body_too_large"


class UrlTooLong(RequestError):
    """The request's URL exceeds the limit."""

    status = 414
    code = "url_too_long"


class HeadersTooLarge(RequestError):
    """The request's headers exceed the limit, in bytes or in number."""

    status = 431
    code = "headers_too_large"


class RateLimited(ReplyError):
    """A limit of the key, or of wrong keys from one address, is reached."""

    status = 429
    code = "rate_limited"
    type = "rate_limit_error"


class ServiceError(ReplyError):
    """The service is at fault; the same request may succeed later."""

    status = 503


class EngineUnavailable(ServiceError):
    """The engine died while it worked on the request, or is not ready yet."""

    code = "engine_unavailable"


class Overloaded(ServiceError):
    """A queue is full."""

    code = "overloaded"


class KeysUnavailable(ServiceError):
    """The state database cannot be read: nobody is let in unseen."""

    code = "keys_unavailable"


class LedgerUnavailable(ServiceError):
    """The ledger cannot be written or read, or too many calls are under way."""

    code = "ledger_unavailable"


class ProviderUnavailable(ServiceError):
    """No cloud provider could answer, or the one that was named is not to be used now."""

    code = "provider_unavailable"


class UpstreamInterrupted(ServiceError):
    """A cloud provider broke off after its answer had begun; nobody else can go on with it."""

    status = 502
    code = "upstream_interrupted"
    is_partial = True


class InternalError(ServiceError):
    """A defect of ours."""

    status = 500
    code = "internal_error"


class StartupError(VergerError):
    """A command cannot do what it was asked; one line, and an exit code."""

    exit_code: ClassVar[int] = EXIT_CANNOT_START


class ConfigError(StartupError):
    """config.toml, a VERGER_* variable or a flag holds an unknown key or a wrong value."""


class ModelFolderError(StartupError):
    """The model's folder is missing, incomplete, damaged, or not a gpt-oss."""


class DownloadError(StartupError):
    """A model cannot be fetched from its hub; what has come stays, and the next attempt goes on."""


class PortInUse(StartupError):
    """Another process listens on the port."""


class DatabaseError(StartupError):
    """The state database cannot be opened, read or written, or a newer Verger made it."""


class NoKeys(StartupError):
    """Others than this machine could reach the server, and there is no key to ask them for."""


class KeyNameTaken(StartupError):
    """A key of this name is in use."""


class KeyNotFound(StartupError):
    """No key in use has this name or prefix."""


class LedgerError(StartupError):
    """The ledger's database cannot be opened."""


class SnapshotError(StartupError):
    """A file of prices or indices is damaged, or does not say what it was asked."""


class InstanceError(StartupError):
    """A client command found no server that it can use."""


class Unreachable(InstanceError):
    """Nothing answers there in time, or not as a Verger would."""


class IdentityChanged(InstanceError):
    """A server is not the one that was advertised, or that was used under this name before."""


class BackupError(StartupError):
    """A backup cannot be written, or an archive is not one that may be restored."""


class PlistError(StartupError):
    """A property list is no launchd job, or says what a job of Verger must not say."""


class InstallError(StartupError):
    """The service cannot be installed or managed here; nothing was changed."""


class NotAMac(InstallError):
    """There is no launchd here."""

    exit_code = EXIT_NOT_A_MAC


class StepFailed(InstallError):
    """A step failed, or did not do what it should; the text says what was put back."""

    exit_code = EXIT_STEP_FAILED


class ServiceDrift(InstallError):
    """Files of the service were changed by somebody else."""

    exit_code = EXIT_DRIFT


class LanError(VergerError):
    """Servers cannot be advertised on the network, or looked for; the server itself goes on."""
