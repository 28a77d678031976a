"""Asynchronous tests run on uvloop, as the gateway does, by anyio's plugin (part of starlette)."""

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}
