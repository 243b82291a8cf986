"""Reading without asking, and waiting without polling."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from multus.kube.cache import Cache
from multus.kube.objects import Pod
from multus.kube.watching import Drop, Put, Replace

pytestmark = pytest.mark.anyio


def pod(name: str, uid: str) -> Pod:
    return Pod(namespace="d", name=name, uid=uid)


def filled(*pods: Pod) -> tuple[Cache[Pod], list[Pod]]:
    gone: list[Pod] = []
    cache: Cache[Pod] = Cache(gone.append)
    cache.apply(Replace({(item.namespace, item.name): item for item in pods}))
    return cache, gone


async def test_is_synced_by_a_list() -> None:
    cache: Cache[Pod] = Cache()
    assert not cache.synced.is_set() and cache.get("d", "a") is None
    cache.apply(Put(pod("a", "1")))
    assert not cache.synced.is_set() and cache.get("d", "a") == pod("a", "1")
    cache.apply(Replace({}))
    assert cache.synced.is_set() and len(cache) == 0


async def test_says_what_is_gone() -> None:
    cache, gone = filled(pod("a", "1"), pod("b", "2"), pod("c", "3"))
    cache.apply(Put(pod("a", "9")))
    assert gone == [pod("a", "1")]
    cache.apply(Put(pod("a", "9")))
    cache.apply(Drop(("d", "b"), "2"))
    cache.apply(Drop(("d", "b"), "2"))
    assert gone == [pod("a", "1"), pod("b", "2")]
    cache.apply(Replace({("d", "c"): pod("c", "4"), ("d", "a"): pod("a", "9")}))
    assert gone[2:] == [pod("c", "3")]
    assert cache.get("d", "c") == pod("c", "4")


@pytest.mark.parametrize(("uid", "kept"), [("old", True), ("2", False), ("", False)])
async def test_late_news_of_a_deletion_does_not_touch_a_new_one(uid: str, kept: bool) -> None:
    cache, _ = filled(pod("a", "2"))
    cache.apply(Drop(("d", "a"), uid))
    assert (cache.get("d", "a") is not None) is kept


async def test_waits_for_one_that_fits() -> None:
    cache, _ = filled(pod("a", "old"))
    got: list[Pod] = []

    async def wait(name: str, uid: str) -> None:
        got.append(await cache.wait("d", name, lambda item: item.uid == uid))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait, "a", "new")
            group.start_soon(wait, "b", "x")
            await anyio.wait_all_tasks_blocked()
            cache.apply(Put(pod("a", "middle")))
            await anyio.wait_all_tasks_blocked()
            assert got == []
            cache.apply(Put(pod("a", "new")))
            await anyio.wait_all_tasks_blocked()
            assert got == [pod("a", "new")]
            cache.apply(Replace({("d", "b"): pod("b", "x")}))
    assert got == [pod("a", "new"), pod("b", "x")]
    assert await cache.wait("d", "b", lambda item: True) == pod("b", "x")


async def test_a_cancelled_wait_leaves_nothing() -> None:
    cache, _ = filled()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(cache.wait, "d", "a", lambda item: True)
        await anyio.wait_all_tasks_blocked()
        cache.apply(Put(pod("b", "1")))
        group.cancel_scope.cancel()
    await checkpoint()
    assert not cache._waiting
