"""The cluster behind an API server: what is read from memory, what is read live, and what is written."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from multus.kube import follow, live
from multus.kube.api import Api
from multus.kube.claims import AllocatedDevice
from multus.kube.errors import ClusterError, InvalidNameError, NotFoundError, RefusedError
from multus.kube.live import LiveCluster
from multus.kube.objects import NETWORK_STATUS, NETWORKS, Pod
from tests.fake_apiserver import FakeApiServer

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], object]], Awaitable[None]]
NADS = "network-attachment-definitions"
BOTH = ("pods", NADS)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_FIRST", 0.01)
    monkeypatch.setattr(follow, "_LONGEST", 0.05)


@asynccontextmanager
async def opened(kubeconfig: Path, **options: Any) -> AsyncIterator[LiveCluster]:
    """A cluster that nobody runs: its memory stays empty."""
    async with Api.open(str(kubeconfig)) as api:
        yield LiveCluster(api, "node-1", **options)


@asynccontextmanager
async def running(kubeconfig: Path, **options: Any) -> AsyncIterator[LiveCluster]:
    async with opened(kubeconfig, **options) as cluster, anyio.create_task_group() as group:
        with anyio.fail_after(20):
            await group.start(cluster.run)
        yield cluster
        group.cancel_scope.cancel()


async def followed(server: FakeApiServer, until: Until, *kinds: str) -> None:
    await until(lambda: all(server.watching(kind) for kind in kinds or BOTH))


def uid(made: dict[str, Any]) -> str:
    text: str = made["metadata"]["uid"]
    return text


# memory


async def test_pods_and_nads_come_from_memory(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    made = server.pod("web", annotations={NETWORKS: "net"})
    server.nad("net", config='{"type": "x"}')
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        await until(lambda: cluster._pod_follower.current and cluster._nad_follower.current)
        pod = await cluster.pod("default", "web", uid=uid(made))
        assert (pod.networks, pod.uid, pod.node) == ("net", uid(made), "node-1")
        assert (await cluster.nad("default", "net")).config == '{"type": "x"}'
        server.nad("net", config='{"type": "changed"}')
        await until(lambda: (held := cluster._nads.get("default", "net")) and "changed" in held.config)
        assert (await cluster.nad("default", "net")).config == '{"type": "changed"}'
    assert server.count("get") == 0


async def test_only_this_nodes_pods_are_kept(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    server.pod("here")
    elsewhere = server.pod("there", node="node-2")
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        server.pod("late", node="node-2")
        server.pod("new")
        await until(lambda: cluster._pods.get("default", "new"))
        assert len(cluster._pods) == 2
        assert (await cluster.pod("default", "there", uid=uid(elsewhere))).node == "node-2"  # live
        server.delete("pods", "here")
        await until(lambda: len(cluster._pods) == 1)


async def test_lists_come_in_pages(server: FakeApiServer, kubeconfig: Path) -> None:
    server.page_limit = 10
    for number in range(35):
        server.nad(f"n{number}")
    async with running(kubeconfig) as cluster:
        assert len(cluster._nads) == 35
    assert server.count(f"list {NADS}") == 4


# live reads


async def test_a_pod_that_the_watch_has_not_told_of_is_read(server: FakeApiServer, kubeconfig: Path) -> None:
    made = server.pod("web")
    async with opened(kubeconfig) as cluster:
        assert (await cluster.pod("default", "web", uid=uid(made))).uid == uid(made)
        assert (await cluster.pod("default", "web")).uid == uid(made)


async def test_a_pod_that_the_watch_brings_while_the_server_hangs(
    server: FakeApiServer, kubeconfig: Path, until: Until
) -> None:
    server.fail("get pods", "hang", times=100)
    async with running(kubeconfig) as cluster, anyio.create_task_group() as group:
        await followed(server, until)

        async def ask() -> None:
            with anyio.fail_after(5):
                assert (await cluster.pod("default", "web", uid="u-1")).uid == "u-1"

        group.start_soon(ask)
        await until(lambda: server.count("get pods"))
        server.pod("web", uid="u-0")
        await until(lambda: cluster._pods.get("default", "web"))
        server.pod("web", uid="u-1")


async def test_a_recreated_pod_is_read_when_memory_is_behind(
    server: FakeApiServer, kubeconfig: Path, until: Until
) -> None:
    old = server.pod("web-0", uid="old")
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        # Put behind the watch's back: it is told of the new one by nobody.
        server._objects["pods"]["default", "web-0"] = {**old, "metadata": {**old["metadata"], "uid": "new"}}
        assert (await cluster.pod("default", "web-0", uid="new")).uid == "new"
        assert (await cluster.pod("default", "web-0")).uid == "new"  # without a uid, memory says nothing
        assert server.count("get pods") == 2
        with pytest.raises(ClusterError, match='expected pod UID "third" but got "new" from Kube API'):
            await cluster.pod("default", "web-0", uid="third")


async def test_a_missing_pod_is_missing_after_one_read(server: FakeApiServer, kubeconfig: Path) -> None:
    async with running(kubeconfig) as cluster:
        with pytest.raises(NotFoundError):
            await cluster.pod("default", "web", uid="u")
        with pytest.raises(NotFoundError) as caught:
            await cluster.nad("default", "net")
    assert 'network-attachment-definitions.k8s.cni.cncf.io "net" not found' in str(caught.value)
    assert (server.count("get pods"), server.count(f"get {NADS}")) == (1, 1)


async def test_names_are_checked_before_anything_is_asked(server: FakeApiServer, kubeconfig: Path) -> None:
    async with opened(kubeconfig) as cluster:
        for ask in (cluster.pod, cluster.nad, cluster.claim):
            with pytest.raises(InvalidNameError):
                await ask("default", "../../secrets/x")
    assert server.seen == []


@pytest.mark.parametrize("broken", ["reset", "garbage", "cut", 500, 503, 429])
async def test_a_busy_server_is_asked_again(server: FakeApiServer, kubeconfig: Path, broken: Any) -> None:
    made = server.pod("web")
    server.nad("net")
    server.fail("get", broken, times=2)
    async with opened(kubeconfig) as cluster:
        assert (await cluster.pod("default", "web", uid=uid(made))).name == "web"
        server.fail("get", broken, times=2)
        assert (await cluster.nad("default", "net")).name == "net"


async def test_an_object_that_cannot_be_read_is_said_to_be_so(server: FakeApiServer, kubeconfig: Path) -> None:
    server.put("network-attachment-definitions", "net", spec={"config": {"type": "macvlan"}})
    async with running(kubeconfig) as cluster:
        with pytest.raises(RefusedError, match="cannot be read: Expected `str"):
            await cluster.nad("default", "net")


async def test_memory_serves_while_the_server_is_away(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    made = server.pod("web")
    server.nad("net")
    async with running(kubeconfig, patience=0.5, stale_patience=0.2) as cluster:
        for what in ("get", "list", "watch"):
            server.fail(what, "reset", times=10_000)
        server.end_watches()
        await until(lambda: not cluster._pod_follower.current and not cluster._nad_follower.current)
        assert (await cluster.pod("default", "web", uid=uid(made))).uid == uid(made)
        assert (await cluster.nad("default", "net")).name == "net"
        assert server.count("get") >= 2
        for ask in (lambda: cluster.pod("default", "new", uid="u"), lambda: cluster.nad("default", "new")):
            begun = time.monotonic()
            with pytest.raises(ClusterError) as caught:
                await ask()
            assert caught.value.retry and time.monotonic() - begun < 5


# static pods


STATIC = {"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "kubelet-uid"}


async def test_a_static_pods_uid_differs(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    server.pod("static", uid="mirror-uid", annotations=STATIC)
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        await until(lambda: cluster._pod_follower.current)
        assert (await cluster.pod("default", "static", uid="kubelet-uid")).uid == "mirror-uid"
        assert server.count("get") == 0
        # Its file was changed, and the mirror may not be this one's yet: what the server says now counts.
        assert (await cluster.pod("default", "static", uid="newer")).uid == "mirror-uid"
        assert server.count("get") == 1


# surviving


@pytest.mark.parametrize("broken", ["reset", "garbage", "cut", "hang", "slow", 500, 503, 429, 410])
@pytest.mark.parametrize("what", ["list", "watch"])
async def test_following_survives(
    server: FakeApiServer, kubeconfig: Path, until: Until, what: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "watch" and broken == "slow":
        broken = "cut"
    monkeypatch.setattr(follow, "_LIST_TIMEOUT", 0.3)
    server.pod("one")
    server.fail(what, broken, times=4)
    async with Api.open(str(kubeconfig)) as api, anyio.create_task_group() as group:
        cluster = LiveCluster(api, "node-1")
        for follower in (cluster._pod_follower, cluster._nad_follower):
            follower._silence = 0.3
        await group.start(cluster.run)
        server.pod("two")
        server.nad("net")
        await until(lambda: len(cluster._pods) == 2 and len(cluster._nads) == 1)
        server.delete("pods", "one")
        await until(lambda: len(cluster._pods) == 1)
        group.cancel_scope.cancel()


async def test_changes_while_the_watch_was_down_are_caught_up(
    server: FakeApiServer, kubeconfig: Path, until: Until
) -> None:
    server.pod("one")
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        server.fail("watch pods", "reset", times=3)
        server.end_watches()
        server.pod("two")
        server.delete("pods", "one")
        await until(lambda: cluster._pods.get("default", "two") and not cluster._pods.get("default", "one"))
        assert server.count("list pods") == 1


async def test_a_forgotten_version_costs_one_list(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    server.pod("one")
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        server.fail("watch pods", "reset", times=1)
        server.end_watches()
        server.pod("two")
        server.delete("pods", "one")
        server.compact()
        await until(lambda: cluster._pods.get("default", "two") and not cluster._pods.get("default", "one"))
        await until(lambda: server.watching("pods"))
        assert server.count("list pods") == 2
        assert "resourceVersion" not in [seen.query for seen in server.seen if seen.what == "list pods"][1]


async def test_a_bookmark_moves_the_version(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        server.bookmark("pods")
        marked = str(server.version)
        await until(lambda: cluster._pod_follower._driver.version == marked)
        server.compact()
        server.version = int(marked)
        server._oldest = int(marked)
        server.end_watches()
        await until(lambda: server.count("watch pods") >= 2)
        await until(lambda: server.watching("pods"))
        assert server.count("list pods") == 1


def _more_watches(server: FakeApiServer, before: int) -> bool:
    return server.count("watch pods") > before


async def test_garbage_in_a_watch(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    async with running(kubeconfig) as cluster:
        for number in range(5):
            await followed(server, until, "pods")
            before = server.count("watch pods")
            server.send("pods", b"<html>oops</html>\n")
            await until(partial(_more_watches, server, before))
            server.pod(f"p{number}")
        await until(lambda: len(cluster._pods) == 5)


async def test_nads_that_are_not_defined(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    server.missing.add(NADS)
    made = server.pod("web")
    async with running(kubeconfig) as cluster:  # starts: that there are none is news enough
        assert (await cluster.pod("default", "web", uid=uid(made))).name == "web"
        with pytest.raises(NotFoundError):
            await cluster.nad("default", "net")
        server.missing.clear()
        server.nad("net")
        assert (await cluster.nad("default", "net")).name == "net"
        await until(lambda: len(cluster._nads) == 1)


async def test_a_start_does_not_wait_for_ever(
    server: FakeApiServer, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_SYNC_WAIT", 0.2)
    server.fail("list", "hang", times=100)
    made = server.pod("web")
    async with running(kubeconfig) as cluster:
        assert (await cluster.pod("default", "web", uid=uid(made))).name == "web"


async def test_watches_that_end_at_once_are_not_asked_in_a_tight_loop(
    server: FakeApiServer, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_WATCH", (0, 0))
    async with running(kubeconfig):
        await anyio.sleep(0.5)
    assert server.count("watch pods") < 60  # with pauses of 50 ms at most; without, it would be hundreds


# network-status


async def test_status_is_written_once(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    made = server.pod("web", annotations={"keep": "me"})
    async with running(kubeconfig) as cluster:
        await followed(server, until)
        pod = await cluster.pod("default", "web", uid=uid(made))
        await cluster.set_network_status(pod, "[1]")
        assert server.get("pods", "web")["metadata"]["annotations"] == {"keep": "me", NETWORK_STATUS: "[1]"}
        await cluster.set_network_status(pod, "[1]")  # though `pod` is how it was before
        assert server.count("patch") == 1
        await cluster.set_network_status(pod, "[2]")
        await cluster.set_network_status(pod, "[1]")
        assert server.count("patch") == 3
    assert server.count("patch pods") == 3 and server.count("create") == 0


async def test_status_that_the_pod_has_already(server: FakeApiServer, kubeconfig: Path) -> None:
    made = server.pod("web", annotations={NETWORK_STATUS: "[1]"})
    async with opened(kubeconfig) as cluster:
        pod = await cluster.pod("default", "web", uid=uid(made))
        await cluster.set_network_status(pod, "[1]")
    assert server.count("patch") == 0


async def test_status_of_a_pod_that_is_gone(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("new", uid="new")
    async with opened(kubeconfig) as cluster:
        await cluster.set_network_status(Pod(namespace="default", name="gone", uid="u"), "[]")
        await cluster.set_network_status(Pod(namespace="default", name="new", uid="old"), "[]")
    assert NETWORK_STATUS not in server.get("pods", "new")["metadata"]["annotations"]
    assert server.count("patch") == 2


@pytest.mark.parametrize(("broken", "retry"), [(503, True), (409, True), ("reset", True), (403, False), (422, False)])
async def test_status_that_is_refused(server: FakeApiServer, kubeconfig: Path, broken: Any, retry: bool) -> None:
    made = server.pod("web")
    async with opened(kubeconfig) as cluster:
        server.fail("patch", broken)
        with pytest.raises(ClusterError) as caught:
            await cluster.set_network_status(Pod(namespace="default", name="web", uid=uid(made)), "[]")
    assert caught.value.retry is retry
    assert server.count("patch") == 1


async def test_status_is_bounded_in_time(
    server: FakeApiServer, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_WRITE_TIMEOUT", 0.1)
    made = server.pod("web")
    server.fail("patch", "hang")
    async with opened(kubeconfig) as cluster:
        with anyio.fail_after(5), pytest.raises(ClusterError):
            await cluster.set_network_status(Pod(namespace="default", name="web", uid=uid(made)), "[]")


# events and claims


async def test_events_are_sent_in_the_background(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    made = server.pod("web")
    async with running(kubeconfig) as cluster:
        pod = await cluster.pod("default", "web", uid=uid(made))
        server.fail("create events", "hang")
        await cluster.event(pod, kind="Warning", reason="FailedAttachNetwork", message="first")
        await until(lambda: server.count("create events"))
        with anyio.fail_after(1):
            await cluster.event(pod, kind="Normal", reason="AddedInterface", message="second")
        assert server.events == []


async def test_an_event_says_whom_it_is_about(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    made = server.pod("web")
    server.fail("create events", 403)
    async with running(kubeconfig) as cluster:
        pod = await cluster.pod("default", "web", uid=uid(made))
        for reason in ("Lost", "FailedAttachNetwork"):
            await cluster.event(pod, kind="Warning", reason=reason, message="because")
        await until(lambda: server.events)
    (sent,) = server.events
    assert (sent["type"], sent["reason"], sent["message"]) == ("Warning", "FailedAttachNetwork", "because")
    assert sent["involvedObject"]["uid"] == uid(made)
    assert sent["source"] == {"component": "multus", "host": "node-1"}
    assert sent["firstTimestamp"].endswith("Z")


async def test_claims_and_slices(server: FakeApiServer, kubeconfig: Path) -> None:
    result = {"request": "r", "driver": "d.com", "pool": "p", "device": "vf-0"}
    server.put("resourceclaims", "c", status={"allocation": {"devices": {"results": [result]}}})
    for name, driver, node in (
        ("mine", "d.com", "node-1"),
        ("other", "d.com", "node-2"),
        ("shared", "d.com", ""),
        ("else", "e.com", "node-1"),
    ):
        spec: dict[str, Any] = {"driver": driver, "pool": {"name": "p"}, **({"nodeName": node} if node else {})}
        server.put("resourceslices", name, spec=spec)
    for number in range(5):
        spec = {"driver": "d.com", "pool": {"name": "p"}, "nodeName": "node-1"}
        server.put("resourceslices", f"more-{number}", spec=spec)
    server.page_limit = 2
    async with opened(kubeconfig) as cluster:
        claim = await cluster.claim("default", "c")
        assert claim.allocated == (AllocatedDevice(request="r", driver="d.com", pool="p", device="vf-0"),)
        names = [each.name for each in await cluster.slices("d.com")]
        assert names == ["mine", "more-0", "more-1", "more-2", "more-3", "more-4", "shared"]
        with pytest.raises(NotFoundError):
            await cluster.claim("default", "none")
