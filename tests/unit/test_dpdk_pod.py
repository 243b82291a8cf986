"""What a pod lacks for DPDK, by its own words and the node's pages, before it starts."""

import pytest

from dpdk.eal import Port
from dpdk.hugepages import Pages
from multus.dpdk_pod import container_of, lacking, memory_mb
from multus.kube.limits import Limits, limits_of
from multus.kube.objects import Pod

GIB = 1024 * 1024
PORT = Port(network="a/b", interface="net1", pci="0000:03:02.0", numa=0, driver="vfio-pci")
PAGES = (
    Pages(node=0, size_kb=2048, total=256, free=256),
    Pages(node=1, size_kb=2048, total=256, free=0),
    Pages(node=0, size_kb=GIB, total=0, free=0),
)


def limits(locks: bool = True, **amounts: str) -> Limits:
    named = {name.replace("_", "-"): amount for name, amount in amounts.items()}
    return Limits(container="fw", amounts={"intel.com/vfw": "1", **named}, locks=locks)


def test_a_pod_that_has_all() -> None:
    assert lacking(limits(hugepages_2Mi="512Mi"), (PORT,), PAGES) == ()


@pytest.mark.parametrize(
    ("given", "port", "what"),
    [
        (limits(), {}, "container fw has no hugepages"),
        (limits(hugepages_1Gi="1Gi"), {}, "may have 1024 MiB in hugepages of 1G, and the node has 0"),
        (limits(hugepages_2Mi="2Gi"), {}, "may have 2048 MiB in hugepages of 2M, and the node has 1024"),
        (limits(hugepages_2Mi="512Mi"), {"numa": 1}, "NUMA node 1, which net1 is on, has no free hugepage"),
        (limits(False, hugepages_2Mi="512Mi"), {}, "IPC_LOCK"),
    ],
)
def test_what_it_lacks(given: Limits, port: dict[str, int], what: str) -> None:
    where = Port(network="a/b", interface="net1", pci="0000:03:02.0", driver="vfio-pci", numa=port.get("numa", 0))
    assert any(what in each for each in lacking(given, (where,), PAGES))


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert lacking(None, (PORT,), ()) == ()
    assert lacking(limits(), (), ()) == ()


@pytest.mark.parametrize(
    ("text", "memory"),
    [("512Mi", {0: 512}), ("1073741824", {0: 1024}), ("1.5Gi", {0: 1536}), ("512M", {0: 488}), ("lots", {}), ("", {})],
)
def test_memory_of_the_limits(text: str, memory: dict[int, int]) -> None:
    assert memory_mb(limits(hugepages_2Mi=text), (PORT,)) == memory


def test_ports_on_two_nodes_leave_it_to_eal() -> None:
    other = Port(network="a/c", interface="net2", pci="0000:83:02.0", numa=1)
    assert memory_mb(limits(hugepages_2Mi="1Gi"), (PORT, other)) == {}


def test_the_container_that_asks_for_the_devices() -> None:
    first = Limits(container="init", amounts={"hugepages-2Mi": "2Mi"})
    pod = Pod(namespace="a", name="b", limits=(first, limits()))
    assert container_of(pod, {"intel.com/vfw"}) == limits()
    assert container_of(pod, {"intel.com/other"}) is None
    assert container_of(pod, set()) == first


@pytest.mark.parametrize(
    ("security", "locks"),
    [
        ({"capabilities": {"add": ["NET_ADMIN", "IPC_LOCK"]}}, True),
        ({"privileged": True}, True),
        ({"capabilities": {"add": ["NET_ADMIN"]}}, False),
        ({"capabilities": {"add": "IPC_LOCK"}}, False),
        ({"capabilities": 7}, False),
        (None, False),
    ],
)
def test_what_is_read_of_a_container(security: object, locks: bool) -> None:
    found = limits_of("fw", {"hugepages-2Mi": "2Mi", "cpu": 2, "odd": None}, security)
    assert found == Limits(container="fw", amounts={"hugepages-2Mi": "2Mi", "cpu": "2"}, locks=locks)


@pytest.mark.parametrize("given", [{"cpu": "1"}, None, 7, ["hugepages-2Mi"]])
def test_a_container_like_any_other(given: object) -> None:
    assert limits_of("web", given, {}) is None
