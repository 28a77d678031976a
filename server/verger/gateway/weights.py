"""Waits for a model that is still to be fetched. Used by `server`; must not know how it is looked
for: the CLI says."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from verger.log import key_values

CHECK_S = 5.0

AreThere = Callable[[], bool]
"""Looks at the disk, so it may block."""

logger = logging.getLogger("verger.gateway")


async def wait_for_weights(
    are_there: AreThere, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Comes back once they are there."""
    while not await asyncio.to_thread(are_there):
        await sleep(CHECK_S)
    logger.info(key_values(event="weights_found"))
