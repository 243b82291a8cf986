"""A fake API server for the tests of the cluster edge, and ways to wait for things without guessing how long."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from tests.fake_apiserver import FakeApiServer

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    """An API server on loopback."""
    async with FakeApiServer().serving() as running:
        yield running


@pytest.fixture
def kubeconfig(server: FakeApiServer, tmp_path: Path) -> Path:
    """A kubeconfig for it."""
    return server.kubeconfig(tmp_path / "kubeconfig")


@pytest.fixture
def until() -> Until:
    """Wait until something holds; fails after a time that no working machine needs."""

    async def wait(condition: Callable[[], object]) -> None:
        with anyio.fail_after(20):
            while not condition():
                await anyio.sleep(0.005)

    return wait
