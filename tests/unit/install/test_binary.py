"""The shim in the directory of plugins."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multus.files import TEMP_MARK
from multus.install.binary import own_shim, plan_binary, plan_removal, read_shim, shim_version
from multus.install.errors import InstallError
from multus.install.steps import Restore, SetAside, Write, aside, perform

if TYPE_CHECKING:
    from .conftest import Host

Release = Callable[[str], bytes]


def test_the_shim_of_this_package_is_known() -> None:
    path = own_shim()
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"multus {shim_version(read_shim(path))}\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/bin/sh\necho multus 1.0\n",
        b"\0multus 1.0.0\n\0",
        b"\x7fELF multus-cni version 4.2.0\n",
        b"\x7fELF\0multus: 4.3\n\0",
    ],
)
def test_other_programs_are_not_taken_for_it(data: bytes, tmp_path: Path) -> None:
    assert shim_version(data) == ""
    (tmp_path / "multus").write_bytes(data)
    with pytest.raises(InstallError, match="is not multus's shim"):
        read_shim(tmp_path / "multus")


def test_no_shim_at_all(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="no shim to install") as caught:
        read_shim(tmp_path / "multus")
    assert "multus-bin-file" in caught.value.hint


def test_installed_once_then_nothing_is_done(host: "Host") -> None:
    shim = read_shim(host.shim)
    names = ("multus", "multus-shim")
    assert len(perform(plan_binary(shim, host.bin_dir, names))) == 2
    for name in names:
        assert (host.bin_dir / name).read_bytes() == shim
        assert (host.bin_dir / name).stat().st_mode & 0o7777 == 0o755
    before = {name: (host.bin_dir / name).stat() for name in names}
    assert plan_binary(shim, host.bin_dir, names) == []
    assert {name: (host.bin_dir / name).stat() for name in names} == before


def test_a_mode_or_a_link_is_put_right(host: "Host") -> None:
    shim = read_shim(host.shim)
    path = host.bin_dir / "multus"
    path.symlink_to(host.shim)
    perform(plan_binary(shim, host.bin_dir, ("multus",)))
    assert not path.is_symlink()
    path.chmod(0o644)
    assert [type(step) for step in plan_binary(shim, host.bin_dir, ("multus",))] == [Write]
    assert read_shim(host.shim) == shim


def test_an_older_release_is_replaced_and_not_kept(host: "Host", release: Release) -> None:
    path = host.bin_dir / "multus"
    path.write_bytes(release("1.0.0"))
    perform(plan_binary(release("2.0.0"), host.bin_dir, ("multus",)))
    assert path.read_bytes() == release("2.0.0")
    assert not aside(path).exists()


def test_what_a_crash_left_is_removed(host: "Host", release: Release) -> None:
    left = host.bin_dir / f".multus{TEMP_MARK}-4711"
    other = host.bin_dir / f".bridge{TEMP_MARK}-4711"
    for path in (left, other):
        path.write_bytes(b"half")
    perform(plan_binary(release("2.0.0"), host.bin_dir, ("multus",)))
    assert not left.exists()
    assert other.exists()


def test_upstreams_program_comes_back(host: "Host", release: Release) -> None:
    path = host.bin_dir / "multus"
    path.write_bytes(b"\x7fELF upstream")
    path.chmod(0o700)
    info = path.stat()
    steps = plan_binary(release("2.0.0"), host.bin_dir, ("multus",))
    assert [type(step) for step in steps] == [SetAside, Write]
    perform(steps[:1])  # a crash here
    assert [type(step) for step in plan_binary(release("2.0.0"), host.bin_dir, ("multus",))] == [Write]
    perform(steps[1:])
    perform(plan_binary(release("3.0.0"), host.bin_dir, ("multus",)))
    steps, left = plan_removal(host.bin_dir)
    assert ([type(step) for step in steps], left) == ([Restore], [])
    perform(steps)
    after = path.stat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (info.st_ino, info.st_mode, info.st_mtime_ns)
    assert path.read_bytes() == b"\x7fELF upstream"


def test_a_program_of_somebody_else_is_left_alone(host: "Host") -> None:
    path = host.bin_dir / "multus-shim"
    path.write_bytes(b"\x7fELF upstream")
    aside(path).write_bytes(b"\x7fELF upstream, older")
    steps, left = plan_removal(host.bin_dir)
    perform(steps)
    assert len(left) == 1
    assert str(path) in left[0]
    assert path.read_bytes() == b"\x7fELF upstream"
    assert not aside(path).exists()


def test_a_directory_in_the_way(host: "Host", release: Release) -> None:
    (host.bin_dir / "multus").mkdir()
    with pytest.raises(InstallError, match="is a directory"):
        plan_binary(release("2.0.0"), host.bin_dir, ("multus",))


def test_a_running_shim_is_replaced(host: "Host") -> None:
    """Writing into it is what gives "text file busy"; that it would is checked first."""
    path = host.bin_dir / "multus"
    shutil.copy2(own_shim(), path)
    env = {"CNI_COMMAND": "STATUS"}
    with subprocess.Popen([path], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert Path(f"/proc/{running.pid}/exe").samefile(path)
        with pytest.raises(OSError) as caught:
            path.open("r+b")
        assert caught.value.errno == errno.ETXTBSY
        newer = read_shim(own_shim()) + b"\0"
        perform(plan_binary(newer, host.bin_dir, ("multus",)))
        assert path.read_bytes() == newer
        assert running.poll() is None
        answer, _ = running.communicate(b'{"daemonSocketDir": "relative"}')
    assert b"daemonSocketDir is not an absolute path" in answer
    assert subprocess.run([path, "--version"], capture_output=True, check=True).stdout.startswith(b"multus ")


def test_where_the_shim_is() -> None:
    assert own_shim() == Path(sys.executable).parent / "multus"
