"""Hugepages on a tree of files: what is there, setting it, and what mountinfo says."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import KernelError
from dpdk.errors import DpdkError
from dpdk.hugepages import (
    Mount,
    Pages,
    default_size,
    parse_mounts,
    parse_size,
    read_mounts,
    read_pages,
    set_pages,
    size_text,
)


def pool(root: Path, place: str, size_kb: int, *, total: int = 0, free: int = 0, surplus: int = 0) -> Path:
    home = root / place / f"hugepages-{size_kb}kB"
    home.mkdir(parents=True)
    for name, count in (("nr", total), ("free", free), ("surplus", surplus)):
        (home / f"{name}_hugepages").write_text(f"{count}\n")
    return home


def test_every_size_on_every_node(tmp_path: Path) -> None:
    for node in (1, 0):
        place = f"devices/system/node/node{node}/hugepages"
        pool(tmp_path, place, 2048, total=100 + node, free=50, surplus=1)
        pool(tmp_path, place, 1048576, total=node)
    (tmp_path / "devices/system/node/node0/hugepages/hugepages-junk").mkdir()
    (tmp_path / "devices/system/node/possible").touch()
    assert [(each.node, each.size_kb, each.total) for each in read_pages(tmp_path)] == [
        (0, 2048, 100),
        (0, 1048576, 0),
        (1, 2048, 101),
        (1, 1048576, 1),
    ]
    assert read_pages(tmp_path)[0] == Pages(node=0, size_kb=2048, total=100, free=50, surplus=1)


def test_a_kernel_without_numa(tmp_path: Path) -> None:
    pool(tmp_path, "kernel/mm/hugepages", 2048, total=8, free=8)
    assert read_pages(tmp_path) == (Pages(node=-1, size_kb=2048, total=8, free=8),)
    assert set_pages(-1, 2048, 16, sysfs=tmp_path).total == 16


def test_what_the_kernel_did_not_find_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool(tmp_path, "devices/system/node/node0/hugepages", 2048, total=100)
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: 0)  # it takes the number and keeps its own
    with pytest.raises(DpdkError, match="the kernel found 100") as partly:
        set_pages(0, 2048, 512, sysfs=tmp_path)
    assert "hugepagesz=2M" in partly.value.hint
    with pytest.raises(DpdkError, match="100 are in use"):
        set_pages(0, 2048, 10, sysfs=tmp_path)


@pytest.mark.parametrize(("node", "size_kb"), [(3, 2048), (0, 4)])
def test_no_such_node_or_size(tmp_path: Path, node: int, size_kb: int) -> None:
    pool(tmp_path, "devices/system/node/node0/hugepages", 2048)
    with pytest.raises(DpdkError, match="there are no hugepages") as refused:
        set_pages(node, size_kb, 1, sysfs=tmp_path)
    assert refused.value.hint == "there are: 2M on node 0"


def test_a_refusal_of_the_kernel(tmp_path: Path) -> None:
    home = pool(tmp_path, "devices/system/node/node0/hugepages", 2048)
    (home / "nr_hugepages").unlink()
    (home / "nr_hugepages").mkdir()
    with pytest.raises(KernelError, match="setting 1 hugepages of 2M on NUMA node 0"):
        set_pages(0, 2048, 1, sysfs=tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2M", 2048), ("2Mi", 2048), ("1G", 1048576), ("2048kB", 2048), ("64K", 64), (" 2MB ", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(size_text(size)) == size


@given(st.text(max_size=12))
def test_no_text_but_a_size_is_one(text: str) -> None:
    with contextlib.suppress(DpdkError):
        assert parse_size(text) >= 0


def test_mounts(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        "30 1 0:27 / /dev/hugepages rw,relatime shared:9 - hugetlbfs hugetlbfs rw,pagesize=2M\n"
        "31 1 0:28 / /mnt/huge\\040pages rw - hugetlbfs nodev rw,gid=5,pagesize=1024M\n"
        "32 1 0:29 / /mnt/default rw - hugetlbfs nodev rw\n"
        "33 1 0:30 / /tmp rw - tmpfs tmpfs rw,pagesize=2M\n"
        "junk\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nHugepagesize:       2048 kB\n")
    assert default_size(tmp_path) == 2048
    assert read_mounts(tmp_path) == (
        Mount(path="/dev/hugepages", size_kb=2048),
        Mount(path="/mnt/huge pages", size_kb=1048576),
        Mount(path="/mnt/default", size_kb=2048),
    )
    assert read_mounts(tmp_path, "4711") == ()
    assert default_size(tmp_path / "absent") == 0


@given(st.text())
def test_no_mountinfo_breaks_it(text: str) -> None:
    assert isinstance(parse_mounts(text), tuple)
