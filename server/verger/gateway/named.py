"""Whether a request names a provider's model itself, and may.

Asked by endpoints before anything is computed or sent. Pure.
"""

from verger.errors import RouteForbidden
from verger.gateway.cloud import Cloud
from verger.gateway.principal import ROUTE_HEADER, Principal, RoutePolicy
from verger.gateway.providers import Target

NAMED_MODEL = "named-model"
"""Why such a request is served where it is."""


def named_targets(
    name: str, is_local: bool, cloud: Cloud, principal: Principal
) -> tuple[Target, ...]:
    """Those that a request means by its model's name; nobody if it means the served model.

    `is_local` says that the name is one of the served model's, too. Raises ModelNotFound, or
    RouteForbidden where the key, or the request itself, stays at home.
    """
    targets = cloud.named(name)
    if targets is None or (is_local and not targets):
        return ()
    if not targets:
        raise cloud.no_such_model(name)
    if principal.route is not RoutePolicy.ANY:
        raise RouteForbidden(
            f"This request may not be served by a cloud provider: by its key or its "
            f"{ROUTE_HEADER} its route is '{principal.route}', and '{name}' needs 'any'. Ask an "
            "administrator, or name a local model.",
            param="model",
        )
    return targets
