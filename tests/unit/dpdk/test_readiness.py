"""What a container lacks, by what was read of it; and reading it, from files as /proc and cgroup v2 have them."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dpdk.containers import read_container, walk_pod
from dpdk.eal import Port, Wanted
from dpdk.errors import DpdkError
from dpdk.hugepages import Mount, Pages
from dpdk.readiness import CAP_IPC_LOCK, CAP_NET_RAW, CAP_SYS_ADMIN, Container, readiness

PORT = Port(network="vfw/inside", interface="net1", pci="0000:03:02.0", numa=0, driver="vfio-pci")
READY = Container(
    cpus=(2, 3),
    cpu_nodes={0: 0, 1: 1, 2: 0, 3: 0},
    capabilities=1 << CAP_IPC_LOCK,
    memlock=65536,
    pages=(Pages(node=0, size_kb=2048, total=512, free=512), Pages(node=1, size_kb=2048, total=0, free=0)),
    mounts=(Mount(path="/dev/hugepages", size_kb=2048),),
    hugetlb={2048: 1 << 30},
)
WANTED = Wanted(cpus=(2, 3), ports=(PORT,), memory_mb={0: 512}, file_prefix="fw")


def test_nothing_is_missing() -> None:
    assert readiness(READY, WANTED) == ()


CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, bool]] = [
    ("no pages", {"pages": ()}, {}, "the node has no hugepages", True),
    ("cgroup", {"hugetlb": {2048: 100 << 20}}, {}, "512 MiB of hugepages are needed, the container can have 100", True),
    ("other node", {}, {"memory_mb": {1: 512}}, "NUMA node 1 has 0 MiB", True),
    ("no mount", {"mounts": ()}, {}, "no hugetlbfs is mounted", True),
    ("memlock", {"capabilities": 0}, {}, "no CAP_IPC_LOCK, and RLIMIT_MEMLOCK is 64 KiB", True),
    (
        "numa",
        {"cpus": (1, 3), "cpu_nodes": {1: 1, 3: 1}},
        {"cpus": (1, 3)},
        "on NUMA node 0, the CPUs are on [1]",
        False,
    ),
    ("foreign CPUs", {}, {"cpus": (2, 9)}, "CPUs [9] are not the container's", True),
    ("one CPU", {"cpus": (2,)}, {"cpus": (2,)}, "one CPU", False),
    ("no CPU", {"cpus": ()}, {"cpus": ()}, "has no CPU", True),
    ("no node", {"devices_missing": ("/dev/vfio/12",)}, {}, "/dev/vfio/12 is not in the container", True),
]


@pytest.mark.parametrize(
    ("container", "wanted", "what", "fatal"), [each[1:] for each in CASES], ids=[c[0] for c in CASES]
)
def test_what_is_missing_is_named(container: dict[str, Any], wanted: dict[str, Any], what: str, fatal: bool) -> None:
    found = readiness(msgspec.structs.replace(READY, **container), msgspec.structs.replace(WANTED, **wanted))
    assert [(what in each.what, each.fatal) for each in found] == [(True, fatal)], found
    assert found[0].hint


@pytest.mark.parametrize(
    ("driver", "capability", "what"),
    [("mlx5_core", CAP_NET_RAW, "CAP_NET_RAW"), ("uio_pci_generic", CAP_SYS_ADMIN, "CAP_SYS_ADMIN")],
)
def test_rights_by_driver(driver: str, capability: int, what: str) -> None:
    wanted = msgspec.structs.replace(WANTED, ports=(msgspec.structs.replace(PORT, driver=driver),))
    (missing,) = readiness(READY, wanted)
    assert what in missing.what
    assert readiness(msgspec.structs.replace(READY, capabilities=1 << capability), wanted) == ()


def test_no_limit_needs_no_capability() -> None:
    assert readiness(msgspec.structs.replace(READY, capabilities=0, memlock=None), WANTED) == ()


def test_in_memory_needs_no_mount() -> None:
    in_memory = msgspec.structs.replace(WANTED, file_prefix="")
    assert readiness(msgspec.structs.replace(READY, mounts=()), in_memory) == ()


def container_files(root: Path, *, cgroup: str = "/kubepods/pod1/c1") -> tuple[Path, Path]:
    proc, sysfs = root / "proc", root / "sys"
    home = proc / "42"
    (home / "root/dev/vfio").mkdir(parents=True)
    (home / "root/dev/vfio/12").touch()
    (home / "status").write_text("Name:\tx\nCapEff:\t0000000000004000\nCpus_allowed_list:\t2-3\n")
    (home / "limits").write_text(
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max locked memory         65536                65536                bytes\n"
    )
    (home / "cgroup").write_text(f"0::{cgroup}\n")
    (home / "mountinfo").write_text("")
    (proc / "meminfo").write_text("")
    for path, limit, used in (("kubepods/pod1/c1", "1073741824", 0), ("kubepods/pod1", "536870912", 2097152)):
        at = sysfs / "fs/cgroup" / path
        at.mkdir(parents=True, exist_ok=True)
        (at / "hugetlb.2MB.max").write_text(limit + "\n")
        (at / "hugetlb.2MB.current").write_text(f"{used}\n")
        (at / "hugetlb.1GB.max").write_text("max\n")
        (at / "hugetlb.2MB.rsvd.max").write_text("0\n")
    (sysfs / "devices/system/node/node1").mkdir(parents=True)
    (sysfs / "devices/system/node/node1/cpulist").write_text("2-3\n")
    return proc, sysfs


def test_a_container_is_read(tmp_path: Path) -> None:
    proc, sysfs = container_files(tmp_path)
    found = read_container("42", devices=["/dev/vfio/12", "/dev/vfio/vfio"], proc=proc, sysfs=sysfs)
    assert found == Container(
        cpus=(2, 3),
        cpu_nodes={2: 1, 3: 1},
        capabilities=1 << CAP_IPC_LOCK,
        memlock=65536,
        hugetlb={2048: 536870912 - 2097152, 1048576: None},
        devices_missing=("/dev/vfio/vfio",),
    )


def test_what_a_program_has_taken_is_not_missing(tmp_path: Path) -> None:
    taken = {2048: 512 << 20}
    full = msgspec.structs.replace(
        READY, hugetlb={2048: 0}, pages=(Pages(node=0, size_kb=2048, total=256, free=0),), taken=taken
    )
    assert readiness(full, WANTED) == ()
    assert readiness(msgspec.structs.replace(full, taken={2048: 256 << 20}), WANTED) != ()
    proc, sysfs = container_files(tmp_path)
    for path in ("kubepods/pod1/c1", "kubepods/pod1"):
        (sysfs / "fs/cgroup" / path / "hugetlb.2MB.current").write_text("536870912\n")
    found = read_container("42", proc=proc, sysfs=sysfs)
    assert (found.taken, found.hugetlb[2048]) == (taken, 0)


def test_a_program_that_stays_on_one_cpu_has_those_of_its_container(tmp_path: Path) -> None:
    proc, sysfs = container_files(tmp_path)
    (sysfs / "fs/cgroup/kubepods/pod1/c1/cpuset.cpus.effective").write_text("2-5\n")
    assert read_container("42", proc=proc, sysfs=sysfs).cpus == (2, 3, 4, 5)


def test_a_cgroup_of_another_namespace_tells_nothing(tmp_path: Path) -> None:
    proc, sysfs = container_files(tmp_path, cgroup="/../../other")
    assert read_container("42", proc=proc, sysfs=sysfs).hugetlb == {}


def test_no_such_process(tmp_path: Path) -> None:
    with pytest.raises(DpdkError, match="cannot read process 43"):
        read_container("43", proc=tmp_path)


def test_this_process() -> None:
    found = read_container()
    assert set(found.cpus) == os.sched_getaffinity(0)


def test_the_process_of_a_pod_that_has_the_devices(tmp_path: Path) -> None:
    uid = "0a1b2c3d-0000-4000-8000-00000000000f"
    for pid, pod in ((7, uid), (30, uid.replace("-", "_")), (200, uid), (3, "ffffffff-0000-4000-8000-000000000000")):
        home = tmp_path / str(pid)
        (home / "root").mkdir(parents=True)
        (home / "cgroup").write_text(f"0::/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-c.scope\n")
    assert walk_pod(uid, marked="/run/multus/dpdk", proc=tmp_path) == 200  # any, as none has the folder
    (tmp_path / "30/root/run/multus/dpdk").mkdir(parents=True)
    assert walk_pod(uid, marked="/run/multus/dpdk", proc=tmp_path) == 30
    with pytest.raises(DpdkError, match="no process of the pod"):
        walk_pod("11111111-0000-4000-8000-000000000000", marked="/run", proc=tmp_path)
