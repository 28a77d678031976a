"""The cloud as the gateway sees it: which providers there are, and which can be relied upon.

One per process, kept by `service`; started and closed with the app. Must not know HTTP or chat
completions. A provider counts only once its check has passed; checks run in the background.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from verger.api.answer import Piece
from verger.api.turn_request import TurnRequest
from verger.errors import ModelNotFound, ProviderUnavailable, UnsupportedParameter
from verger.gateway.backends.cloud_request import CloudRequest
from verger.gateway.backends.upstream_body import is_in_tool_loop, unsupported
from verger.gateway.failover import BUDGET_S, Failover
from verger.gateway.provider_check import Check, check_provider
from verger.gateway.providers import ANY_PROVIDER, Provider, Target
from verger.log import key_values

if TYPE_CHECKING:
    from verger.gateway.backends.cloud import CloudBackend
    from verger.gateway.purse import Purse

logger = logging.getLogger("verger.gateway")

FIRST_RECHECK_S = 60.0
MAX_RECHECK_S = 600.0


def connect() -> "CloudBackend":
    """Imported late: most servers have no provider, and httpx takes a tenth of a second."""
    from verger.gateway.backends.cloud import CloudBackend

    return CloudBackend()


class Cloud:
    """Belongs to the event loop. Without providers it does nothing."""

    def __init__(
        self,
        providers: Sequence[Provider] = (),
        *,
        make_backend: Callable[[], "CloudBackend"] = connect,
        budget_s: float = BUDGET_S,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.providers: tuple[Provider, ...] = ()
        self._make_backend = make_backend
        self._budget_s = budget_s
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._problems: dict[str, str] = {}
        """Why each provider is not to be relied upon; those that are not in it are."""
        self._backend: CloudBackend | None = None
        self._failover: Failover | None = None
        self._open_purse: Callable[[], Purse] | None = None
        self._has_started = False
        self._checks: list[asyncio.Task[None]] = []
        self._ended_checks: list[asyncio.Task[None]] = []
        self.replace(providers)

    def start(self, open_purse: "Callable[[], Purse] | None" = None) -> None:
        """Begin to check the providers; returns at once. `open_purse` pays for a check."""
        self._open_purse, self._has_started = open_purse, True
        self._begin()

    def replace(self, providers: Sequence[Provider]) -> None:
        """Others from now on; answers that have begun go on. All are checked again, also those
        that were refused; who is the same and could be relied upon still can, meanwhile."""
        proven = [provider for provider in self.providers if self.is_available(provider)]
        self.providers = tuple(providers)
        self._problems = {
            provider.name: "it has not been checked yet"
            for provider in self.providers
            if provider not in proven
        }
        if self._has_started:
            self._begin()

    async def close(self) -> None:
        """End checks and connections."""
        self._end_checks()
        await asyncio.gather(*self._ended_checks, return_exceptions=True)
        if self._backend is not None:
            await self._backend.close()

    async def wait_checked(self) -> None:
        """Return once each provider has passed its check, or has failed for good."""
        await asyncio.gather(*self._checks)

    def is_available(self, provider: Provider) -> bool:
        """Whether its check has passed."""
        return provider.name not in self._problems

    def problem_of(self, provider: Provider) -> str:
        """Why it is not to be relied upon; empty if it is."""
        return self._problems.get(provider.name, "")

    def named(self, name: str) -> tuple[Target, ...] | None:
        """What `provider/model` means, or `cloud/model`: all that have the model, in order.

        None if the name begins with no provider; nobody if that provider has no such model.
        """
        prefix, has_prefix, model = name.partition("/")
        meant = self._providers_of(prefix) if has_prefix else []
        if not meant:
            return None
        return tuple(Target(provider, model) for provider in meant if model in provider.models)

    def no_such_model(self, name: str) -> ModelNotFound:
        """For a name that begins with a provider: what that provider has."""
        prefix = name.partition("/")[0]
        known = {f"{prefix}/{model}" for p in self._providers_of(prefix) for model in p.models}
        return ModelNotFound(
            f"The model '{name}' does not exist here. Available: {', '.join(sorted(known))}.",
            param="model",
        )

    def fitting(self, targets: Sequence[Target], turn: TurnRequest) -> tuple[Target, ...]:
        """Those that are available and can honour all of the request.

        Raises ProviderUnavailable or UnsupportedParameter, which say why none is left.
        """
        available = [target for target in targets if self.is_available(target.provider)]
        if not available:
            told = [f"{t.provider.name}: {self.problem_of(t.provider)}" for t in targets]
            raise ProviderUnavailable(f"No provider can be used now: {'; '.join(told)}.")
        missing = {target.name: unsupported(target.provider.kind, turn) for target in available}
        fitting = tuple(target for target in available if not missing[target.name])
        if not fitting:
            target = available[0]
            name = missing[target.name][0]
            raise UnsupportedParameter(
                f"{target.provider.kind.title} does not support '{name}'; leave it out.", param=name
            )
        return fitting

    def spill_targets(self, turn: TurnRequest) -> tuple[Target, ...]:
        """Who could take over a request for the served model, unasked for; nobody is no error.

        Not who may train on prompts, cannot go on with a tool loop that was begun here, or answers
        only when warm.
        """
        is_looping = is_in_tool_loop(turn)
        return tuple(
            Target(provider, model)
            for provider in self.providers
            if self.is_available(provider)
            and not provider.may_train
            and provider.kind.answers_cold
            and (provider.kind.joins_tool_loops or not is_looping)
            and not unsupported(provider.kind, turn)
            for model in provider.models
        )

    def pieces(
        self,
        targets: Sequence[Target],
        request: CloudRequest,
        on_commit: Callable[[Target], None],
    ) -> AsyncGenerator[Piece]:
        """The answer of the first that gives one: see `Failover.pieces`."""
        assert self._failover is not None
        return self._failover.pieces(targets, request, on_commit)

    def _begin(self) -> None:
        self._end_checks()
        if not self.providers:
            return
        backend = self._backend = self._backend or self._make_backend()
        self._failover = Failover(
            backend.open_stream,
            budget_s=self._budget_s,
            monotonic_s=self._monotonic_s,
            sleep=self._sleep,
        )
        self._checks = [
            asyncio.create_task(self._keep_checking(backend, provider), name=provider.name)
            for provider in self.providers
        ]
        for check in self._checks:
            check.add_done_callback(_end)

    def _end_checks(self) -> None:
        """They are awaited when all is closed."""
        for check in self._checks:
            check.cancel()
        self._ended_checks = [check for check in self._ended_checks if not check.done()]
        self._ended_checks += self._checks
        self._checks = []

    def _providers_of(self, prefix: str) -> list[Provider]:
        return [p for p in self.providers if prefix in (p.name, ANY_PROVIDER)]

    async def _keep_checking(self, backend: "CloudBackend", provider: Provider) -> None:
        """Until it passes, or needs a repair: an internet that is away comes back by itself."""
        pause_s = FIRST_RECHECK_S
        while True:
            check = await check_provider(
                backend, provider, None if self._open_purse is None else self._open_purse()
            )
            self._note(check)
            if check.is_usable or check.is_final:
                return
            await self._sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_RECHECK_S)

    def _note(self, check: Check) -> None:
        if check.problem is None:
            self._problems.pop(check.provider, None)
            logger.info(key_values(event="provider_ready", provider=check.provider))
            return
        self._problems[check.provider] = check.problem
        logger.warning(
            key_values(
                event="provider_unusable",
                provider=check.provider,
                problem=check.problem,
                advice="run: verger providers check",
            )
        )


def _end(check: asyncio.Task[None]) -> None:
    """A defect here costs only its provider, but must not go unseen."""
    if not check.cancelled() and (defect := check.exception()) is not None:
        logger.critical("event=provider_check_failed", exc_info=defect)
