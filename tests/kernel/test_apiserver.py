"""The daemon under an API server: what an ADD asks of it, and what happens when it is cut off at each request."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.linux import netns
from multus.cli.box import Box, Sandbox
from multus.cni.errors import CNIError, Code
from multus.kube.objects import Pod
from tests.fake_apiserver import FakeApiServer

NETWORKS = "k8s.v1.cni.cncf.io/networks"
STATUS = "k8s.v1.cni.cncf.io/network-status"
SECOND = {
    "cniVersion": "1.0.0",
    "type": "bridge",
    "bridge": "br-second",
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
}


class Cluster:
    """An API server in the box's network namespace, run by a thread, and the box under it."""

    def __init__(self, box: Box, directory: Path) -> None:
        self.box = box
        self.server = FakeApiServer()
        self.loop = asyncio.new_event_loop()
        self._up, self._end = threading.Event(), asyncio.Event()
        self._directory = directory
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._up.wait(10)

    def _serve(self) -> None:
        listener = netns.run_in(f"/proc/{self.box.holder}/ns/net", socket.create_server, ("127.0.0.1", 0))

        async def serve() -> None:
            async with self.server.serving(listener=listener):
                kubeconfig = self.server.kubeconfig(self._directory / "kubeconfig")
                self.box.configure(manifests="", kubeconfig=str(kubeconfig))
                self._up.set()
                await self._end.wait()

        self.loop.run_until_complete(serve())

    def do(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something of the server in its own thread."""

        async def inside() -> Any:
            return call(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(10)

    def pod(self, name: str, *, networks: str = "second") -> Sandbox:
        made = self.do(self.server.pod, name, node="box", annotations={NETWORKS: networks})
        sandbox = Sandbox(Pod(namespace="default", name=name, uid=made["metadata"]["uid"]))
        self.box.pods[name] = sandbox
        return sandbox

    def status(self, name: str) -> Any:
        text = self.do(self.server.get, "pods", name)["metadata"]["annotations"].get(STATUS)
        return json.loads(text) if text else None

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def cluster(make_box: Callable[..., Box], tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(make_box(), tmp_path)
    made.do(made.server.nad, "second", config=json.dumps(SECOND))
    yield made
    made.close()


def gone(box: Box) -> bool:
    return [each for each in box.leftovers() if each != "interface br-second"] == []


def names(sandbox: Sandbox) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link")) if link["ifname"] != "lo")


def test_an_add_costs_one_write_and_no_read(cluster: Cluster) -> None:
    cluster.box.start()
    sandbox = cluster.pod("pod")
    cluster.box.wait(lambda: cluster.do(cluster.server.count, "watch pods") >= 1, "the watch")
    cluster.box.cni("ADD", cluster.pod("warm"))
    before = len(cluster.server.seen)
    cluster.box.cni("ADD", sandbox)
    assert [seen.what for seen in cluster.server.seen[before:]] == ["patch pods"]
    assert [entry["interface"] for entry in cluster.status("pod")] == ["eth0", "net1"]
    before = len(cluster.server.seen)
    for each in (sandbox, cluster.box.pods["warm"]):
        cluster.box.cni("DEL", each)
    assert cluster.server.seen[before:] == []
    assert gone(cluster.box)


@pytest.mark.parametrize("fault", ["reset", "garbage", 500, 503, 429])
@pytest.mark.parametrize(
    "what", ["list pods", "watch pods", "list network", "watch network", "get pods", "get network", "patch pods"]
)
def test_one_bad_answer_costs_no_pod(cluster: Cluster, what: str, fault: Any) -> None:
    """Each request fails once, caches cold, and the ADD succeeds all the same; DEL leaves nothing."""
    cluster.do(cluster.server.fail, what, fault, times=1)
    if what.startswith("get"):  # asked only where the watches do not tell
        cluster.do(cluster.server.fail, "watch", "reset", times=10_000)
    cluster.box.start()
    sandbox = cluster.pod("pod")
    cluster.box.cni("ADD", sandbox)
    assert names(sandbox) == ["eth0", "net1"]
    cluster.box.wait(lambda: cluster.status("pod"), "the network-status")
    cluster.box.cni("DEL", sandbox)
    assert gone(cluster.box)


def test_a_server_that_refuses_everything(cluster: Cluster) -> None:
    """403 is final: the ADD fails at once and says what to allow. DEL needs nobody."""
    cluster.box.start()
    held = cluster.pod("held")
    cluster.box.cni("ADD", held)
    cluster.do(cluster.server.fail, "", 403, times=10_000)
    cluster.do(cluster.server.end_watches)
    fresh = cluster.pod("fresh")
    with pytest.raises(CNIError, match="get pods"):
        cluster.box.cni("ADD", fresh)
    cluster.box.cni("DEL", fresh)
    cluster.box.cni("DEL", held)
    assert gone(cluster.box)


def test_a_server_that_is_away(cluster: Cluster) -> None:
    """ADD says to try again, DEL works, and a pod that was attached before is told its status later."""
    cluster.box.start()
    held = cluster.pod("held")
    cluster.do(cluster.server.fail, "patch pods", "reset", times=10_000)
    cluster.box.cni("ADD", held)
    assert names(held) == ["eth0", "net1"]
    cluster.do(cluster.server.faults.clear)
    cluster.box.wait(lambda: cluster.status("held"), "the network-status")
    cluster.do(cluster.server.fail, "", "reset", times=10_000)
    cluster.do(cluster.server.end_watches)
    fresh = cluster.pod("fresh")
    with pytest.raises(CNIError) as caught:
        cluster.box.cni("ADD", fresh)
    assert caught.value.code == Code.TRY_AGAIN_LATER
    cluster.box.stop()
    cluster.box.start()
    cluster.box.cni("DEL", fresh)
    cluster.box.cni("DEL", held)
    assert gone(cluster.box)


def test_a_pod_that_is_gone_gets_nothing(cluster: Cluster) -> None:
    """Deleted while it was made: the runtime is answered, no plugin runs."""
    cluster.box.start()
    sandbox = cluster.pod("pod")
    cluster.do(cluster.server.delete, "pods", "pod")
    result = cluster.box.cni("ADD", sandbox).result
    assert result["ips"][0]["address"] == "0.0.0.0/32"
    assert names(sandbox) == []
    cluster.box.cni("DEL", sandbox)
    assert gone(cluster.box)


def test_a_failure_is_told_to_the_pod(cluster: Cluster) -> None:
    cluster.box.start()
    sandbox = cluster.pod("pod", networks="no-such-network")
    with pytest.raises(CNIError, match="no-such-network"):
        cluster.box.cni("ADD", sandbox)
    cluster.box.wait(lambda: cluster.server.events, "the event")
    event = cluster.server.events[0]
    assert (event["type"], event["reason"]) == ("Warning", "FailedAttachNetwork")
    assert "cannot find a network-attachment-definition (no-such-network)" in event["message"]
    assert gone(cluster.box)
