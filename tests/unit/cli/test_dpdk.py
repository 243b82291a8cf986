"""`multusctl dpdk` on a fake kernel."""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from devices import portfiles
from dpdk import hugepages
from dpdk.eal import Port, format_cpus
from dpdk.holders import Holder
from dpdk.portmap import encode_map, make_map
from multus.cli import dpdk
from multus.errors import MultusError
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from tests.fake_pci_kernel import FakePciKernel

PF = "0000:03:00.0"
Run = Callable[..., int]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePciKernel:
    made = FakePciKernel(tmp_path)
    for name in ("iavf", "vfio-pci"):
        made.tree.driver(name)
    made.tree.pf(PF, netdev="ens1", total=8, num=2, group=10)
    monkeypatch.setattr(dpdk, "_kernel", lambda _: made)
    pool = made.tree.sys / "devices/system/node/node0/hugepages/hugepages-2048kB"
    pool.mkdir(parents=True)
    for file in ("nr", "free", "surplus"):
        (pool / f"{file}_hugepages").write_text("0\n")
    return made


@pytest.fixture
def run(kernel: FakePciKernel, tmp_path: Path) -> Iterator[Run]:
    def call(command: str, *arguments: str) -> int:
        parser = argparse.ArgumentParser()
        dpdk.add_parser(parser.add_subparsers(dest="command", required=True))
        common = ["--cni-dir", str(tmp_path / "state"), "--sysfs", str(kernel.tree.sys)]
        chosen = parser.parse_args(["dpdk", command, *common, *arguments])
        return int(chosen.run(chosen))

    yield call


def status(run: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert run("status", "--json") == 0
    return {each["pci"]: each for each in json.loads(capsys.readouterr().out)["devices"]}


def test_there_and_back(kernel: FakePciKernel, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    vfs = [kernel.tree.vf_bdf(PF, index) for index in range(2)]
    assert run("bind", *vfs) == 0
    assert [status(run, capsys)[bdf]["driver"] for bdf in vfs] == ["vfio-pci"] * 2
    kernel.held[vfs[0]] = (Holder(pid=4711, command="dpdk-testpmd", pod="vfw/fw-0"),)
    assert run("status") == 0
    assert "process 4711 (dpdk-testpmd) of pod vfw/fw-0" in capsys.readouterr().out
    assert run("unbind", *vfs) == 1
    said = capsys.readouterr().out
    assert f"{vfs[0]} is in use by process 4711" in said
    assert f"{vfs[1]} is on iavf again" in said
    kernel.held.clear()
    assert run("unbind", vfs[0]) == 0
    assert [status(run, capsys)[bdf]["driver"] for bdf in vfs] == ["iavf"] * 2


def test_a_dry_run_changes_nothing(kernel: FakePciKernel, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bind", "--dry-run", kernel.tree.vf_bdf(PF, 0)) == 0
    assert "would save what there was, set the MAC through the PF, set driver_override" in capsys.readouterr().out
    assert run("bind", "--dry-run", PF) == 1
    assert "a whole NIC stays with the kernel" in capsys.readouterr().out
    assert kernel.done == []


def test_one_refusal_does_not_stop_the_others(kernel: FakePciKernel, run: Run) -> None:
    assert run("bind", PF, kernel.tree.vf_bdf(PF, 1)) == 1
    assert kernel.sysfs.read_one(kernel.tree.vf_bdf(PF, 1)).driver == "vfio-pci"  # type: ignore[union-attr]


def test_what_something_else_bound_goes_where_it_is_told(
    kernel: FakePciKernel, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    bdf = kernel.tree.vf_bdf(PF, 0)
    kernel.unbind("iavf", bdf)
    kernel.tree.bind(bdf, "vfio-pci")
    assert run("unbind", bdf) == 1
    assert "what it was before is not known" in capsys.readouterr().out
    assert run("unbind", "--driver", "iavf", bdf) == 0
    assert status(run, capsys)[bdf]["driver"] == "iavf"


@pytest.mark.parametrize("command", ["bind", "unbind"])
def test_a_vf_of_a_pod_is_left_alone(
    kernel: FakePciKernel, run: Run, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bdf = kernel.tree.vf_bdf(PF, 0)
    item = Attachment(position=0, ifname="net1", network="vfw/inside", conf=b"{}", device_id=bdf)

    async def attach() -> None:
        (tmp_path / "state").mkdir()
        async with Journal.open(tmp_path / "state/journal.db") as journal:
            await journal.begin(
                Sandbox(
                    container_id="c1",
                    ifname="eth0",
                    netns="/run/netns/x",
                    netns_id="",
                    boot_id="",
                    pod_namespace="vfw",
                    pod_name="fw-0",
                    pod_uid="",
                    created=0.0,
                    state=State.ATTACHED,
                    attachments=(item,),
                )
            )

    anyio.run(attach)
    assert run(command, bdf) == 1
    assert "pod vfw/fw-0 (net1)" in capsys.readouterr().out
    assert kernel.done == []


def test_hugepages(kernel: FakePciKernel, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hugepages", "--size", "2M", "--count", "64") == 0
    assert ["0", "2M", "64", "0", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    with pytest.raises(MultusError, match="no hugepages of 1G on NUMA node 0"):
        run("hugepages", "--size", "1G", "--count", "1")
    with pytest.raises(MultusError, match="no page size"):
        run("hugepages", "--size", "big")
    with pytest.raises(MultusError, match="not a directory"):
        run("hugepages", "--mount", "/no/such/directory")


def test_a_hugetlbfs_is_mounted_once_and_seen_to_be_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts: list[hugepages.Mount] = []
    commands: list[list[str]] = []
    works = True

    def mount(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if works:
            mounts.append(hugepages.Mount(path=command[-1], size_kb=2048))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", mount)
    monkeypatch.setattr(hugepages, "read_mounts", lambda: tuple(mounts))
    assert run("hugepages", "--mount", str(tmp_path)) == 0
    assert commands == [["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "nodev", str(tmp_path)]]
    assert run("hugepages", "--mount", str(tmp_path)) == 0
    assert len(commands) == 1
    works = False
    with pytest.raises(MultusError, match="no hugetlbfs is at"):
        run("hugepages", "--mount", str(tmp_path), "--size", "1G")


def test_check_names_what_is_missing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--device", "/dev/vfio/no-such-group") == 1
    said = capsys.readouterr().out
    assert "the node has no hugepages" in said
    assert "/dev/vfio/no-such-group is not in the container" in said


@pytest.fixture
def ports(kernel: FakePciKernel, tmp_path: Path) -> Path:
    """The map of a pod with both VFs on vfio-pci."""
    vfs = [kernel.tree.vf_bdf(PF, index) for index in range(2)]
    made = make_map(
        [Port(network=f"vfw/n{i}", interface=f"net{i}", pci=bdf, driver="vfio-pci") for i, bdf in enumerate(vfs)],
        pod="vfw/fw",
        uid="u-1",
        sandbox="c1",
    )
    for bdf in vfs:
        portfiles.write(tmp_path / "info", bdf, {portfiles.MAP: encode_map(made)})
    return portfiles.folder(tmp_path / "info", vfs[0]) / portfiles.MAP


def test_the_command_line_of_a_pods_program(
    kernel: FakePciKernel, run: Run, ports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (kernel.tree.vf_bdf(PF, index) for index in range(2))
    arguments = f"-a {a} -a {b} --in-memory --iova-mode va"
    own = sorted(os.sched_getaffinity(0))
    assert run("eal", "--map", str(ports), "--pid", "self", "--app", "my app", "--args=-i --stats-period=10") == 0
    assert capsys.readouterr().out == f"'my app' -l {format_cpus(own)} {arguments} -- -i --stats-period=10\n"
    assert run("eal", "--info", str(ports.parents[2]), "vfw/fw") == 0
    line = capsys.readouterr().out
    shell = line.replace("dpdk-testpmd", "echo", 1)
    said = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said == f"-l {format_cpus(own)} {arguments}\n"
    with pytest.raises(MultusError, match="has no DPDK ports on this node"):
        run("eal", "--info", str(ports.parents[2]), "vfw/other")
    with pytest.raises(MultusError, match="No closing quotation"):
        run("eal", "vfw/fw", "--info", str(ports.parents[2]), "--args='")
    with pytest.raises(MultusError, match="whose command line"):
        run("eal")
    with pytest.raises(MultusError, match="is no map"):
        ports.chmod(0o644)
        ports.write_text("{}")
        run("eal", "--map", str(ports))


def test_check_takes_what_is_needed_from_the_map(run: Run, ports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--map", str(ports)) == 1
    said = capsys.readouterr().out
    assert "/dev/vfio/11 is not in the container" in said
    assert "/dev/vfio/12 is not in the container" in said


@pytest.mark.parametrize("arguments", [("bind", "junk"), ("bind", "--mac", "02:00:00:00:00:01", PF, "03:00.1")])
def test_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(MultusError):
        run(*arguments)
