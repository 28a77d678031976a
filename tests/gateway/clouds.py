"""Gateways with providers that are played: what the tests of the cloud have in common."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.fault_provider import FaultProvider
from tests.gateway.harness import Gateway, running_gateway
from tests.providers import KINDS, key_file
from verger.config import PriceConfig, ProviderConfig
from verger.costs.prices import Snapshot
from verger.gateway.backends.cloud import CloudBackend
from verger.gateway.backends.cloud_request import Deadlines
from verger.gateway.cloud import Cloud
from verger.gateway.principal import ANONYMOUS, Principal, RoutePolicy
from verger.gateway.providers import Provider, load_providers

SHORT = Deadlines(connect_s=2.0, first_s=1.0, idle_s=1.0, after_finish_s=0.2)
"""Long enough for a machine that does other things as well."""
ALLOWED = replace(ANONYMOUS, route=RoutePolicy.ANY, budget_usd=10.0)
PRICE = PriceConfig(input_usd=1.0, output_usd=4.0)
RICH = {"cloud_budget_usd": 10.0}


def played_by(
    provider: FaultProvider,
    folder: Path,
    name: str,
    plays: Iterable[str] | dict[str, str],
    kind: str = "openrouter",
    monthly_budget_usd: float | None = None,
    *,
    no_training: bool = False,
) -> Provider:
    """One that plays what its models are called; `correct` is the first, which the check asks."""
    models = plays if isinstance(plays, dict) else {play: play for play in plays}
    config = ProviderConfig(
        name=name,
        kind=kind,
        base_url=provider.url,
        key_file=str(key_file(folder)),
        models={"correct": "correct", **models},
        price=PRICE,
        monthly_budget_usd=monthly_budget_usd,
        no_training=no_training,
    )
    (loaded,) = load_providers([config], KINDS, folder, Snapshot())
    return loaded


@asynccontextmanager
async def cloud_gateway(
    folder: Path,
    providers: Iterable[Provider],
    principal: Principal = ALLOWED,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """A gateway whose engine never gets ready, and whose providers are checked."""
    cloud = Cloud(tuple(providers), make_backend=lambda: CloudBackend(SHORT))
    async with running_gateway(folder, None, cloud, principal, **RICH | settings) as gateway:
        # Whoever is answered knows that the app has started, and the checks with it.
        await gateway.http.get("/livez")
        await cloud.wait_checked()
        yield gateway
