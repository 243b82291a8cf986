"""PodResources, asked of a real gRPC server on a Unix socket that behaves as kubelets old and new do."""

import socket
import time
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status

from devices.kubelet.allocation import ContainerDevices, Devices, PodDevices
from devices.kubelet.errors import KubeletError
from devices.kubelet.podresources import SOCKET, PodResources
from tests.fake_kubelet import FakeKubelet, Get

pytestmark = pytest.mark.anyio

VF = "intel.com/sriov"


def client(kubelet: FakeKubelet, timeout: float = 10.0) -> PodResources:
    return PodResources(kubelet.directory / SOCKET, timeout=timeout)


@pytest.mark.parametrize(
    ("get", "calls"),
    [("served", ["Get"]), ("unimplemented", ["Get", "List"]), ("disabled", ["Get", "List"])],
)
async def test_one_pod(tmp_path: Path, get: Get, calls: list[str]) -> None:
    async with FakeKubelet(tmp_path, get=get) as kubelet:
        kubelet.pods["ns", "other"] = [("c", [(VF, ["0000:00:01.0"])])]
        kubelet.pods["other", "pod"] = [("c", [(VF, ["0000:00:02.0"])])]
        kubelet.pods["ns", "pod"] = [
            ("b", [(VF, ["0000:03:02.3"]), ("gpu", ["g"]), (VF, ["0000:03:02.0", "0000:03:02.3"])]),
            ("a", []),
        ]
        found = await client(kubelet).pod("ns", "pod")
    assert found == PodDevices(
        namespace="ns",
        name="pod",
        containers=(
            ContainerDevices(
                container="b",
                devices=(
                    Devices(resource=VF, ids=("0000:03:02.0", "0000:03:02.3")),  # sorted, NUMA nodes together
                    Devices(resource="gpu", ids=("g",)),
                ),
            ),
            ContainerDevices(container="a"),  # the kubelet's order of containers stays
        ),
    )
    assert kubelet.calls == calls


@pytest.mark.parametrize("get", ["served", "unimplemented", "disabled"])
async def test_a_pod_that_the_kubelet_does_not_know(tmp_path: Path, get: Get) -> None:
    async with FakeKubelet(tmp_path, get=get) as kubelet:
        kubelet.pods["ns", "other"] = []
        assert await client(kubelet).pod("ns", "pod") is None


@pytest.mark.parametrize(("namespace", "name"), [("", "pod"), ("ns", ""), ("", "")])
async def test_names_must_be_given(tmp_path: Path, namespace: str, name: str) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        with pytest.raises(KubeletError, match="both must be given"):
            await client(kubelet).pod(namespace, name)
        assert kubelet.calls == []


async def test_all_pods_and_what_there_is_to_give(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods["ns", "pod"] = []
        kubelet.allocatable = {VF: ["2", "1"], "gpu": ["g"]}
        assert await client(kubelet).pods() == (PodDevices(namespace="ns", name="pod"),)
        assert await client(kubelet).allocatable() == (
            Devices(resource=VF, ids=("1", "2")),
            Devices(resource="gpu", ids=("g",)),
        )


@pytest.mark.parametrize("get", ["of another pod", "empty"])
async def test_an_answer_about_another_pod_is_refused(tmp_path: Path, get: Get) -> None:
    async with FakeKubelet(tmp_path, get=get) as kubelet:
        kubelet.pods["ns", "pod"] = []
        with pytest.raises(KubeletError, match="answered with another pod than ns/pod"):
            await client(kubelet).pod("ns", "pod")


async def test_too_many_calls_are_made_again(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods["ns", "pod"] = []
        kubelet.limited = 2
        assert await client(kubelet).pod("ns", "pod") is not None
        assert kubelet.calls == ["Get", "Get", "Get"]


async def test_too_many_calls_for_ever(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.limited = 10**9
        with pytest.raises(KubeletError, match="RESOURCE_EXHAUSTED: rejected by rate limit"):
            await client(kubelet, timeout=0.2).pod("ns", "pod")
        assert "List" not in kubelet.calls  # which would cost the kubelet more


async def test_a_refusal_that_listing_would_not_mend(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.failing = Status.PERMISSION_DENIED
        with pytest.raises(KubeletError, match="refused Get: PERMISSION_DENIED") as caught:
            await client(kubelet).pod("ns", "pod")
        assert (kubelet.calls, caught.value.unsupported, caught.value.retry) == (["Get"], False, True)


async def test_a_kubelet_without_allocatable(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.failing = Status.UNIMPLEMENTED
        with pytest.raises(KubeletError) as caught:
            await client(kubelet).allocatable()
        assert caught.value.unsupported


async def test_no_answer_in_time(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.hanging = True
        began = time.monotonic()
        with pytest.raises(KubeletError, match=r"did not answer Get within 0\.1 s"):
            await client(kubelet, timeout=0.1).pod("ns", "pod")
        assert time.monotonic() - began < 5


async def test_cancelling(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.hanging = True
        with anyio.move_on_after(0.1) as scope:
            await client(kubelet, timeout=60).pod("ns", "pod")
        assert scope.cancelled_caught


async def test_an_answer_that_is_too_large(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods["ns", "pod"] = [("c", [(VF, ["0000:03:02.0"] * 100)])]
        with pytest.raises(KubeletError, match=r"an answer of .* bytes, 1000 at most"):
            await PodResources(tmp_path / SOCKET, limit=1000).pod("ns", "pod")


async def test_an_answer_of_a_large_node(tmp_path: Path) -> None:
    """4 MiB, which is where other gRPC libraries stop by default."""
    async with FakeKubelet(tmp_path, get="unimplemented") as kubelet:
        ids = [f"0000:03:02.{number:06d}" for number in range(300)]
        kubelet.pods |= {("ns", f"pod-{number}"): [("c", [(VF, ids)])] for number in range(800)}
        found = await client(kubelet).pod("ns", "pod-799")
    assert found is not None
    assert found.containers[0].devices[0].ids == tuple(ids)


async def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(KubeletError, match=r"no PodResources from .*No such file or directory"):
        await PodResources(tmp_path / SOCKET).pod("ns", "pod")


async def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(KubeletError, match="refused"):
        await PodResources(path).pod("ns", "pod")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x04\x00" + b"\xff" * 500])
async def test_something_else_than_grpc(tmp_path: Path, said: bytes) -> None:
    """The cancelling at the end is part of it: a task whose connection broke must still be one that scopes can end."""
    path = tmp_path / "kubelet.sock"

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            if said:
                await stream.send(said)

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        with pytest.raises(KubeletError):
            await PodResources(path, timeout=1).pod("ns", "pod")
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        group.cancel_scope.cancel()
