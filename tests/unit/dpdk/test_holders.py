"""Who has a device open, by a fake /proc and by the real one."""

import os
from pathlib import Path

import pytest

from dpdk.holders import Holder, find_holders, nodes_of

BDF = "0000:03:02.0"
UID = "0fe1bd5e-8c3b-4b3c-9c3e-0123456789ab"
CONTAINER = "ab" * 32


def process(proc: Path, pid: int, *, command: str = "testpmd", cgroup: str = "0::/\n") -> Path:
    home = proc / str(pid)
    (home / "fd").mkdir(parents=True)
    (home / "fdinfo").mkdir()
    (home / "comm").write_text(command + "\n")
    (home / "cgroup").write_text(cgroup)
    return home


def test_a_node_that_is_open_is_found_by_its_number_and_not_its_name(tmp_path: Path) -> None:
    """As in a container, where the node of a group without an IOMMU has another name."""
    home = process(tmp_path, 42)
    (home / "fd/3").symlink_to("/dev/null")
    (home / "fd/4").symlink_to("/dev/zero")
    assert find_holders(BDF, [Path("/dev/full")], proc=tmp_path) == ()
    assert find_holders(BDF, [Path("/dev/zero")], proc=tmp_path) == (Holder(pid=42, command="testpmd"),)


def test_this_process_in_the_real_proc() -> None:
    opened = os.open("/dev/full", os.O_RDONLY)
    try:
        assert os.getpid() in [each.pid for each in find_holders(BDF, [Path("/dev/full")])]
    finally:
        os.close(opened)


@pytest.mark.parametrize(
    ("cgroup", "container", "uid"),
    [
        (
            f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope",
            CONTAINER,
            UID,
        ),
        (f"0::/kubepods/burstable/pod{UID}/{CONTAINER}\n", CONTAINER, UID),
        ("0::/system.slice/ssh.service\n", "", ""),
    ],
)
def test_the_pod_is_read_from_the_cgroup(tmp_path: Path, cgroup: str, container: str, uid: str) -> None:
    home = process(tmp_path, 42, cgroup=cgroup)
    (home / "fd/3").symlink_to("/dev/zero")
    (found,) = find_holders(
        BDF, [Path("/dev/zero")], proc=tmp_path, pod_name=lambda holder: "vfw/fw-0" if holder.pod_uid == UID else ""
    )
    assert (found.container, found.pod_uid) == (container, uid)
    assert found.pod == ("vfw/fw-0" if uid else "")
    assert ("of pod vfw/fw-0" in str(found)) == bool(uid)


@pytest.mark.parametrize(("bdf", "held"), [(BDF, True), ("0000:03:02.1", False)])
def test_a_vfio_device_by_what_fdinfo_says(tmp_path: Path, bdf: str, held: bool) -> None:
    home = process(tmp_path, 42)
    (home / "fd/9").symlink_to("anon_inode:[vfio-device]")
    (home / "fdinfo/9").write_text(f"pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:00:01.0/{bdf}\n")
    assert bool(find_holders(BDF, [], proc=tmp_path)) is held


def test_what_goes_away_meanwhile_is_no_holder(tmp_path: Path) -> None:
    home = process(tmp_path, 42)
    (home / "fd/3").symlink_to("/dev/no-such-node")
    (home / "fd/4").symlink_to("anon_inode:[vfio-device]")
    (tmp_path / "43").mkdir()
    (tmp_path / "self").mkdir()
    assert find_holders(BDF, [Path("/dev/zero"), tmp_path / "absent", tmp_path], proc=tmp_path) == ()
    assert find_holders(BDF, [Path("/dev/zero")], proc=tmp_path / "absent") == ()


def test_nodes_of_a_device(tmp_path: Path) -> None:
    device, dev = tmp_path / "sys/bus/pci/devices" / BDF, tmp_path / "dev"
    for name in ("uio/uio3", "vfio-dev/vfio1", "infiniband_verbs/uverbs0"):
        (device / name).mkdir(parents=True)
    (device / "iommu_group").symlink_to("../../../kernel/iommu_groups/12")
    for name in ("vfio/12", "vfio/devices/vfio1", "uio3", "infiniband/uverbs0", "vfio/13"):
        (dev / name).parent.mkdir(parents=True, exist_ok=True)
        (dev / name).touch()
    found = nodes_of(BDF, sysfs=tmp_path / "sys", dev=dev)
    assert [str(path.relative_to(dev)) for path in found] == [
        "vfio/12",
        "vfio/devices/vfio1",
        "uio3",
        "infiniband/uverbs0",
    ]
