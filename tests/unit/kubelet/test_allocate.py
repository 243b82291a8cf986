"""What containers are told and given, by tables, and which devices are preferred."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.kubelet import plugin
from devices.kubelet.allocate import (
    Device,
    Grant,
    Preference,
    Spec,
    device_info,
    device_specs,
    environment,
    environment_name,
    info_name,
    mounts,
    preferred,
)
from devices.linux.nodes import Nodes, read_nodes

A, B, C = "0000:03:02.0", "0000:03:02.1", "0000:03:02.2"
PF = "0000:03:00.0"


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        ("intel.com/sriov_net", "PCIDEVICE_INTEL_COM_SRIOV_NET"),
        ("intel.com/sriov-net", "PCIDEVICE_INTEL_COM_SRIOV-NET"),  # a hyphen stays, as upstream has it
        ("a.b.c/x", "PCIDEVICE_A_B_C_X"),
    ],
)
def test_the_variable(resource: str, name: str) -> None:
    assert environment_name(resource) == name


def test_environment_is_in_the_order_of_attachment() -> None:
    told = environment("intel.com/net", [Grant(id=C), Grant(id=A), Grant(id=B)])
    assert told["PCIDEVICE_INTEL_COM_NET"] == f"{A},{B},{C}"
    assert json.loads(told["PCIDEVICE_INTEL_COM_NET_INFO"]) == {
        id_: {"generic": {"deviceID": id_}} for id_ in (A, B, C)
    }


def test_files_for_dpdk_are_mounted_and_named() -> None:
    grants = [Grant(id=B, ports=f"/info/dpdk/{B}"), Grant(id=A), Grant(id=C, ports=f"/info/dpdk/{C}")]
    told = environment("intel.com/vfw", grants)
    assert told["PCIDEVICE_INTEL_COM_VFW"] == f"{A},{B},{C}"
    assert told["MULTUS_DPDK_INTEL_COM_VFW"] == f"/run/multus/dpdk/{B}"
    assert mounts(grants) == tuple(
        Spec(host=f"/info/dpdk/{each}", container=f"/run/multus/dpdk/{each}") for each in (B, C)
    )
    assert "MULTUS_DPDK_INTEL_COM_VFW" not in environment("intel.com/vfw", [Grant(id=A)])
    assert mounts([Grant(id=A)]) == ()
    answer = plugin._answer("intel.com/vfw", grants)
    assert dict(answer.envs) == told
    assert [(each.host_path, each.container_path, each.read_only) for each in answer.mounts] == [
        (f"/info/dpdk/{each}", f"/run/multus/dpdk/{each}", True) for each in (B, C)
    ]


INFORMATION: list[tuple[Grant, dict[str, object], list[Spec]]] = [
    (Grant(id=A), {}, []),
    (
        Grant(id=A, nodes=Nodes(group="12")),
        {"vfio": {"mount": "/dev/vfio/vfio", "dev-mount": "/dev/vfio/12"}},
        [Spec(host="/dev/vfio/vfio", container="/dev/vfio/vfio"), Spec(host="/dev/vfio/12", container="/dev/vfio/12")],
    ),
    (
        Grant(id=A, nodes=Nodes(group="0", noiommu=True)),
        {"vfio": {"mount": "/dev/vfio/vfio", "dev-mount": "/dev/vfio/0"}},
        [
            Spec(host="/dev/vfio/vfio", container="/dev/vfio/vfio"),
            Spec(host="/dev/vfio/noiommu-0", container="/dev/vfio/0"),
        ],
    ),
    (
        Grant(id=A, nodes=Nodes(uio=("uio1",))),
        {"uio": {"mount": "/dev/uio1"}},
        [Spec(host="/dev/uio1", container="/dev/uio1")],
    ),
    (
        Grant(id=A, vhost=True, extra={"k": "v"}),
        {"vhost": {"net-mount": "/dev/vhost-net", "tun-mount": "/dev/net/tun"}, "extra": {"k": "v"}},
        [
            Spec(host="/dev/vhost-net", container="/dev/vhost-net"),
            Spec(host="/dev/net/tun", container="/dev/net/tun"),
        ],
    ),
    (
        Grant(id=A, nodes=Nodes(rdma="mlx5_3", rdma_nodes=("uverbs3", "issm3", "umad3", "rdma_cm"))),
        {
            "rdma": {
                "rdma_dev": "mlx5_3",
                "uverbs": "/dev/infiniband/uverbs3",
                "issm": "/dev/infiniband/issm3",
                "umad": "/dev/infiniband/umad3",
                "rdma_cm": "/dev/infiniband/rdma_cm",
            }
        },
        [
            Spec(host=f"/dev/infiniband/{name}", container=f"/dev/infiniband/{name}")
            for name in ("uverbs3", "issm3", "umad3", "rdma_cm")
        ],
    ),
    (
        Grant(id=A, nodes=Nodes(vdpa="vhost-vdpa-2")),
        {"vdpa": {"mount": "/dev/vhost-vdpa-2"}},
        [Spec(host="/dev/vhost-vdpa-2", container="/dev/vhost-vdpa-2")],
    ),
]


@pytest.mark.parametrize(("grant", "information", "specs"), INFORMATION)
def test_information_and_nodes(grant: Grant, information: dict[str, object], specs: list[Spec]) -> None:
    told = json.loads(environment("x/y", [grant])["PCIDEVICE_X_Y_INFO"])
    assert told == {A: {"generic": {"deviceID": A}, **information}}
    assert device_specs([grant]) == tuple(specs)


def test_two_groups_share_the_container_node() -> None:
    grants = [Grant(id=B, nodes=Nodes(group="1")), Grant(id=A, nodes=Nodes(group="0"))]
    assert [spec.host for spec in device_specs(grants)] == ["/dev/vfio/vfio", "/dev/vfio/0", "/dev/vfio/1"]


@pytest.mark.parametrize(
    ("grant", "document"),
    [
        (Grant(id=A), {"type": "pci", "version": "1.1.0", "pci": {"pci-address": A}}),
        (Grant(id=PF, parent=PF), {"type": "pci", "version": "1.1.0", "pci": {"pci-address": PF}}),
        (
            Grant(id=A, parent=PF, vhost=True, nodes=Nodes(rdma="mlx5_3")),
            {
                "type": "pci",
                "version": "1.1.0",
                "pci": {
                    "pci-address": A,
                    "pf-pci-address": PF,
                    "rdma-device": "mlx5_3",
                    "vhost-net": "/dev/vhost-net",
                },
            },
        ),
        (
            Grant(id=A, nodes=Nodes(vdpa="vhost-vdpa-0")),
            {
                "type": "vdpa",
                "version": "1.1.0",
                "vdpa": {"driver": "vhost", "path": "/dev/vhost-vdpa-0", "pci-address": A},
            },
        ),
    ],
)
def test_device_info(grant: Grant, document: dict[str, object]) -> None:
    assert json.loads(device_info(grant)) == document


def test_info_name() -> None:
    assert info_name("intel.com/net", A) == f"intel.com-net-{A}-device.json"


# preferences


def devices(*layout: tuple[str, int, str]) -> dict[str, Device]:
    """(id, NUMA node, parent)."""
    return {id_: Device(id=id_, numa=numa, parent=parent) for id_, numa, parent in layout}


TWO_NODES = devices(
    ("a0", 0, "a"), ("a1", 0, "a"), ("a2", 0, "a"), ("b0", 0, "b"), ("b1", 0, "b"), ("c0", 1, "c"), ("c1", 1, "c")
)
UNKNOWN = devices(("a0", -1, "a"), ("a1", -1, "a"), ("b0", -1, "b"), ("b1", -1, "b"))


@pytest.mark.parametrize(
    ("offer", "without", "required", "size", "spread", "pack"),
    [
        (TWO_NODES, "", (), 1, ["c0"], ["c0"]),  # the node that is filled best; the larger one stays whole
        (TWO_NODES, "", (), 2, ["c0", "c1"], ["c0", "c1"]),
        (TWO_NODES, "", (), 3, ["a0", "b0", "a1"], ["b0", "b1", "a0"]),  # pack begins with the smallest parent
        (TWO_NODES, "c", (), 2, ["a0", "b0"], ["b0", "b1"]),
        (TWO_NODES, "", ("a1",), 2, ["a1", "b0"], ["a1", "a0"]),  # where the required one is
        (TWO_NODES, "", ("c1",), 3, ["c1", "c0", "a0"], ["c1", "c0", "b0"]),
        (TWO_NODES, "", (), 6, ["a0", "b0", "a1", "b1", "a2", "c0"], ["b0", "b1", "a0", "a1", "a2", "c0"]),
        (UNKNOWN, "", (), 2, ["a0", "b0"], ["a0", "a1"]),
        (UNKNOWN, "", ("a0", "a1"), 2, ["a0", "a1"], ["a0", "a1"]),
        (UNKNOWN, "", (), 0, [], []),
        (UNKNOWN, "", (), 9, ["a0", "b0", "a1", "b1"], ["a0", "a1", "b0", "b1"]),
    ],
)
def test_preference(
    offer: dict[str, Device], without: str, required: Sequence[str], size: int, spread: list[str], pack: list[str]
) -> None:
    available = [id_ for id_ in offer if not without or not id_.startswith(without)]
    how: Preference
    for how, expected in (("spread", spread), ("pack", pack)):
        assert list(preferred(offer, available, required, size, preference=how)) == expected
        assert list(preferred(offer, available[::-1], required, size, preference=how)) == expected


def test_unhealthy_and_unknown_ones_come_last() -> None:
    offer = {"a": Device(id="a", healthy=False), "b": Device(id="b")}
    assert preferred(offer, ["?", "a", "b"], [], 3) == ("b", "?", "a")


@given(
    st.dictionaries(
        st.text("abc0", min_size=1, max_size=3), st.tuples(st.integers(-1, 2), st.sampled_from("xyz"), st.booleans())
    ),
    st.integers(-1, 9),
    st.sampled_from(["spread", "pack"]),
    st.data(),
)
def test_any_answer_is_one_that_the_kubelet_takes(
    layout: dict[str, tuple[int, str, bool]], size: int, how: Preference, data: st.DataObject
) -> None:
    offer = {
        id_: Device(id=id_, numa=numa, parent=parent, healthy=healthy)
        for id_, (numa, parent, healthy) in layout.items()
    }
    available = data.draw(st.lists(st.sampled_from([*offer, "stranger"]), unique=True))
    required = data.draw(
        st.lists(st.sampled_from(available), unique=True, max_size=max(size, 0)) if available else st.just([])
    )
    chosen = preferred(offer, available, required, size, preference=how)
    assert len(set(chosen)) == len(chosen) == min(max(size, 0), len(available))
    assert set(required) <= set(chosen) <= set(available)


# the nodes of a device


def device(sysfs: Path, address: str, *, driver: str = "", group: str = "") -> Path:
    path = sysfs / "bus/pci/devices" / address
    path.mkdir(parents=True)
    if driver:
        (path / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    if group:
        (path / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
    return path


@pytest.mark.parametrize(
    ("driver", "group", "kind", "expected"),
    [
        ("vfio-pci", "5", "", Nodes(group="5")),
        ("vfio-pci", "0", "vfio-noiommu\n", Nodes(group="0", noiommu=True)),
        ("vfio-pci", "", "", Nodes()),
        ("iavf", "5", "", Nodes()),
        ("", "5", "", Nodes()),
    ],
)
def test_vfio_nodes(tmp_path: Path, driver: str, group: str, kind: str, expected: Nodes) -> None:
    device(tmp_path, A, driver=driver, group=group)
    if kind:
        groups = tmp_path / "kernel/iommu_groups" / group
        groups.mkdir(parents=True)
        (groups / "name").write_text(kind)
    assert read_nodes(A, sysfs=tmp_path) == expected


def test_a_group_may_get_another_number(tmp_path: Path) -> None:
    path = device(tmp_path, A, driver="vfio-pci", group="5")
    assert read_nodes(A, sysfs=tmp_path).group == "5"
    (path / "iommu_group").unlink()
    (path / "iommu_group").symlink_to("../../../kernel/iommu_groups/10")
    assert read_nodes(A, sysfs=tmp_path).group == "10"


def test_uio_rdma_and_vdpa_nodes(tmp_path: Path) -> None:
    path = device(tmp_path, A, driver="mlx5_core")
    for name in ("uio/uio1", "infiniband/mlx5_3", "infiniband_verbs/uverbs3", "infiniband_mad/umad3"):
        (path / name).mkdir(parents=True)
    (path / "infiniband_mad/issm3").mkdir()
    (path / "vdpa0/vhost-vdpa-1").mkdir(parents=True)
    (tmp_path / "class/misc/rdma_cm").mkdir(parents=True)
    assert read_nodes(A, sysfs=tmp_path) == Nodes(
        uio=("uio1",), rdma="mlx5_3", rdma_nodes=("uverbs3", "issm3", "umad3", "rdma_cm"), vdpa="vhost-vdpa-1"
    )


@pytest.mark.parametrize("address", ["0000:99:00.0", "junk", ""])
def test_a_device_that_is_not_there_has_no_nodes(tmp_path: Path, address: str) -> None:
    assert read_nodes(address, sysfs=tmp_path) == Nodes()
