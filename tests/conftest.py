"""Fixtures for every lane."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio: pyroute2, grpclib and aiohttp tie it there."""
    return "asyncio"
