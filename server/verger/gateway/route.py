"""Where a request is served: decided once, before anything is computed or sent.

Made by whoever decides (a model's explicit name here; predicted waits elsewhere), read by endpoints
and by the log. Pure.
"""

from dataclasses import dataclass
from enum import Enum

from verger.errors import RouteForbidden
from verger.gateway.cloud import Cloud
from verger.gateway.engine_supervisor import EngineState
from verger.gateway.principal import ROUTE_HEADER, Principal, RoutePolicy
from verger.gateway.providers import Target


class Place(Enum):
    """Who computes the answer."""

    LOCAL = "local"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class Route:
    """`targets` are asked in this order, for Place.CLOUD only."""

    place: Place
    reason: str
    targets: tuple[Target, ...] = ()

    @property
    def served_by(self) -> str:
        """Who is expected to answer, before anybody has."""
        return f"cloud:{self.targets[0].provider.name}" if self.targets else Place.LOCAL.value


ONLY_ROUTE = Route(Place.LOCAL, "only-route")
"""There is no other place for it."""
NAMED_MODEL = "named-model"
"""The request names a provider's model itself."""
ENGINE_LOADING, ENGINE_DOWN = "engine-loading", "engine-down"


def reason_to_leave(engine: EngineState) -> str | None:
    """Why the engine cannot answer now, if it cannot."""
    match engine:
        case EngineState.READY:
            return None
        case EngineState.STARTING:
            return ENGINE_LOADING
    return ENGINE_DOWN


def route_of_name(name: str, is_local: bool, cloud: Cloud, principal: Principal) -> Route | None:
    """The route of a request that names a provider's model, None if it does not.

    `is_local` says that the name is one of the served model's, too. Raises ModelNotFound, or
    RouteForbidden where the key, or the request itself, stays at home.
    """
    targets = cloud.named(name)
    if targets is None or (is_local and not targets):
        return None
    if not targets:
        raise cloud.no_such_model(name)
    if principal.route is not RoutePolicy.ANY:
        raise RouteForbidden(
            f"This request may not be served by a cloud provider: by its key or its "
            f"{ROUTE_HEADER} its route is '{principal.route}', and '{name}' needs 'any'. Ask an "
            "administrator, or name a local model.",
            param="model",
        )
    return Route(Place.CLOUD, NAMED_MODEL, targets)
