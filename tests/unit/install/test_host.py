"""Installing on a host and leaving it as it was, crashes between any two steps included."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from multus.files import TEMP_MARK
from multus.install.errors import InstallError
from multus.install.host import install_host
from multus.install.steps import holding
from multus.install.uninstall import uninstall_host
from multus.journal import Journal
from multus.sandbox import Sandbox, State

if TYPE_CHECKING:
    from .conftest import Host

Release = Callable[[str], bytes]
UPSTREAMS = b'{"cniVersion":"0.4.0","name":"multus-cni-network","clusterNetwork":"/x/y","type":"multus-shim"}'


class Crash(BaseException):
    """The process ends here."""


def crash_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End at the `number`-th call from now that opens, changes or syncs a file; in a process of its own."""
    left = number
    pid = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: pid)

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **keywords: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            return call(*arguments, **keywords)

        return run

    for name in ("open", "fchmod", "fsync", "replace", "unlink", "link", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


def test_install_and_uninstall_leave_nothing(host: "Host") -> None:
    host.master()
    before = host.snapshot()
    lines = install_host(host.options())
    assert [line.split(" (")[0] for line in lines] == [
        f"wrote {host.bin_dir}/multus",
        f"wrote {host.conf_dir}/00-multus.conflist",
    ]
    assert host.written()["plugins"][0]["clusterNetwork"] == str(host.conf_dir / "10-flannel.conflist")
    assert (host.conf_dir / "00-multus.conflist").stat().st_mode & 0o7777 == 0o600
    assert install_host(host.options()) == ["nothing to do: everything is installed"]
    assert len(uninstall_host(host.options())) == 2
    assert host.snapshot() == before
    assert uninstall_host(host.options()) == ["nothing of multus is installed here"]


def test_what_was_there_before_comes_back(host: "Host") -> None:
    host.master()
    for path in (host.bin_dir / "multus", host.bin_dir / "multus-shim"):
        path.write_bytes(b"\x7fELF upstream")
        path.chmod(0o755)
    (host.conf_dir / "00-multus.conf").write_bytes(UPSTREAMS)
    before = host.snapshot()
    install_host(host.options(names=("multus", "multus-shim")))
    assert not (host.conf_dir / "00-multus.conf").exists()  # it sorts before ours
    host.master(cniVersion="0.3.1")
    install_host(host.options(names=("multus", "multus-shim")))
    assert not (host.conf_dir / "00-multus.conflist").exists()
    host.master()
    uninstall_host(host.options())
    assert host.snapshot() == before


@pytest.mark.parametrize("dry", [install_host, uninstall_host])
def test_a_dry_run_tells_and_touches_nothing(host: "Host", dry: Callable[..., list[str]]) -> None:
    host.master()
    if dry is uninstall_host:
        install_host(host.options())
    before = host.snapshot()
    lines = dry(host.options(), dry_run=True)
    assert len(lines) == 2
    assert all(line.startswith("would ") for line in lines)
    assert host.snapshot() == before


def test_without_a_default_network_the_shim_is_installed_and_the_rest_said(host: "Host") -> None:
    lines = install_host(host.options())
    assert (host.bin_dir / "multus").exists()
    assert "no CNI configuration yet" in lines[-1]
    assert list(host.conf_dir.iterdir()) == []


def test_what_can_be_refused_is_refused_before_anything_is_touched(host: "Host") -> None:
    host.master().write_text("{")
    before = host.snapshot()
    with pytest.raises(InstallError, match="failed to read the primary CNI plugin config"):
        install_host(host.options())
    host.master()
    host.shim.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(InstallError, match="is not multus's shim"):
        install_host(host.options())
    host.master().write_text("{")
    assert host.snapshot() == before


@pytest.mark.parametrize(("which", "flag"), [("bin_dir", "cni-bin-dir"), ("conf_dir", "cni-conf-dir")])
def test_directories_are_not_invented(host: "Host", which: str, flag: str) -> None:
    host.master()
    shutil.rmtree(getattr(host, which))
    with pytest.raises(InstallError, match=f"{flag} is not found"):
        install_host(host.options())


def test_the_operators_own_configuration_is_copied(host: "Host", tmp_path: Path) -> None:
    own = tmp_path / "70-multus.conf"
    own.write_text('{"name": "m", "type": "multus", "delegates": [{"type": "flannel"}]}')
    host.master()
    before = host.snapshot()
    install_host(host.options())
    install_host(host.options(multusConfigFile=str(own)))
    assert (host.conf_dir / own.name).read_bytes() == own.read_bytes()
    assert (host.conf_dir / own.name).stat().st_mode & 0o7777 == 0o600
    assert not (host.conf_dir / "00-multus.conflist").exists()
    own.write_text('{"name": "n", "type": "multus", "delegates": [{"type": "flannel"}]}')
    install_host(host.options(multusConfigFile=str(own)))
    uninstall_host(host.options(multusConfigFile=str(own)))
    assert host.snapshot() == before


def test_the_operators_own_configuration_in_its_place_is_never_removed(host: "Host") -> None:
    own = host.conf_dir / "00-multus.conf"
    own.write_text('{"name": "m", "type": "multus", "delegates": [{"type": "flannel"}]}')
    own.chmod(0o644)
    before = host.snapshot()
    install_host(host.options(multusConfigFile=str(own)))
    uninstall_host(host.options(multusConfigFile=str(own)))
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("multus.txt", "{}", "no runtime would read"),
        ("m.conf", "", "failed to copy the user provided configuration"),
        ("m.conf", '{"type"', "failed to copy the user provided configuration"),
    ],
)
def test_an_own_configuration_that_cannot_be_used(
    host: "Host", tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InstallError, match=message):
        install_host(host.options(multusConfigFile=str(tmp_path / name)))


def prepare_upgrade(host: "Host", release: Release) -> None:
    """Our older shim, upstream's under its name, and our configuration for a network that was older, too."""
    host.shim.write_bytes(release("1.0.0"))
    host.master(cniVersion="0.4.0")
    (host.bin_dir / "multus-shim").write_bytes(b"\x7fELF upstream")
    install_host(host.options())
    host.shim.write_bytes(release("2.0.0"))
    host.master()


def test_a_crash_at_any_point_of_an_installation(host: "Host", release: Release, tmp_path: Path) -> None:
    """The old or the new is in each place, a configuration is always there, and the next installation completes it."""
    names = ("multus", "multus-shim")
    prepare_upgrade(host, release)
    pristine = tmp_path / "pristine"
    shutil.copytree(host.root, pristine, symlinks=True)
    old = {name: (host.bin_dir / name).read_bytes() for name in names}
    old_conf = (host.conf_dir / "00-multus.conf").read_bytes()
    install_host(host.options(names=names))
    complete = host.snapshot()
    new_conf = (host.conf_dir / "00-multus.conflist").read_bytes()
    crashes = 0
    while True:
        shutil.rmtree(host.root)
        shutil.copytree(pristine, host.root, symlinks=True)
        with pytest.MonkeyPatch.context() as patched:
            crash_at(crashes, patched)
            try:
                install_host(host.options(names=names))
                break
            except Crash:
                crashes += 1
        for name in names:
            assert (host.bin_dir / name).read_bytes() in (old[name], release("2.0.0"))
        confs = [path for path in host.conf_dir.glob("00-multus.conf*") if TEMP_MARK not in path.name]
        assert confs
        assert all(path.read_bytes() == (new_conf if path.suffix == ".conflist" else old_conf) for path in confs)
        install_host(host.options(names=names))
        assert host.snapshot() == complete
    assert crashes > 20


def test_a_crash_at_any_point_of_an_uninstallation(host: "Host", release: Release, tmp_path: Path) -> None:
    host.master()
    (host.bin_dir / "multus").write_bytes(b"\x7fELF upstream")
    (host.conf_dir / "00-multus.conf").write_bytes(UPSTREAMS)
    before = host.snapshot()
    install_host(host.options(names=("multus", "multus-shim")))
    installed = tmp_path / "installed"
    shutil.copytree(host.root, installed, symlinks=True)
    crashes = 0
    while True:
        shutil.rmtree(host.root)
        shutil.copytree(installed, host.root, symlinks=True)
        with pytest.MonkeyPatch.context() as patched:
            crash_at(crashes, patched)
            try:
                uninstall_host(host.options())
                break
            except Crash:
                crashes += 1
        assert list(host.conf_dir.glob("00-multus.conf*"))
        uninstall_host(host.options())
        assert host.snapshot() == before
    assert host.snapshot() == before
    assert crashes > 8


def test_a_full_disk_leaves_the_old_and_says_so(
    host: "Host", release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_upgrade(host, release)
    before = host.snapshot()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left on device"):
        install_host(host.options())
    assert host.snapshot() == before


async def journal_with(host: "Host", *pods: str) -> None:
    async with Journal.open(host.state / "journal.db") as journal:
        for pod in pods:
            sandbox = Sandbox(
                container_id=f"c-{pod}",
                ifname="eth0",
                state=State.ATTACHED,
                netns="",
                netns_id="",
                boot_id="",
                pod_namespace="ns",
                pod_name=pod,
                pod_uid="",
            )
            await journal.begin(sandbox)


def state(host: "Host", *pods: str) -> None:
    host.state.mkdir(parents=True)
    (host.state / "spool").mkdir()
    (host.state / "multusd.lock").touch()
    anyio.run(journal_with, host, *pods)


def test_refused_while_pods_hold_networks(host: "Host") -> None:
    host.master()
    install_host(host.options())
    state(host, "a", "b", "c", "d")
    before = host.snapshot()
    for with_state in (False, True):
        with pytest.raises(InstallError, match="ns/a, ns/b, ns/c and 1 more") as caught:
            uninstall_host(host.options(), state=with_state)
        assert "drain" in caught.value.hint
    assert host.snapshot() == before
    uninstall_host(host.options(), force=True)
    assert not (host.bin_dir / "multus").exists()
    assert (host.state / "journal.db").exists()


def test_refused_while_dels_wait(host: "Host") -> None:
    state(host)
    (host.state / "spool/c-eth0.1.del").touch()
    with pytest.raises(InstallError, match="1 DELs wait"):
        uninstall_host(host.options())


def test_refused_when_the_journal_cannot_be_read(host: "Host") -> None:
    state(host)
    (host.state / "journal.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(InstallError, match="it is not known whether"):
        uninstall_host(host.options())


@pytest.mark.parametrize("force", [False, True])
def test_refused_while_the_daemon_runs(host: "Host", force: bool) -> None:
    host.master()
    install_host(host.options())
    state(host)
    before = host.snapshot()
    with (host.state / "multusd.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InstallError, match="multusd is running"):
            uninstall_host(host.options(), state=True, force=force)
    assert host.snapshot() == before


def test_the_state_goes_only_when_asked(host: "Host", tmp_path: Path) -> None:
    host.master()
    (host.state.parent).mkdir(parents=True)
    before = host.snapshot()
    socket_dir = tmp_path / "run"
    socket_dir.mkdir()
    (socket_dir / "multus.sock").touch()
    install_host(host.options())
    state(host)
    lines = uninstall_host(host.options(daemonSocketDir=str(socket_dir)))
    assert "stays unless it is asked for" in lines[-1]
    assert (host.state / "journal.db").exists()
    uninstall_host(host.options(daemonSocketDir=str(socket_dir)), state=True)
    assert host.snapshot() == before
    assert not socket_dir.exists()


def test_what_an_earlier_multus_left_in_the_state_stays(host: "Host") -> None:
    state(host)
    (host.state / "results").mkdir()
    (host.state / "0123abc").write_text("[]")
    uninstall_host(host.options(), state=True)
    assert sorted(path.name for path in host.state.iterdir()) == ["0123abc", "results"]


def test_a_changed_configuration_of_ours_is_still_ours(host: "Host") -> None:
    host.master()
    install_host(host.options())
    path = host.conf_dir / "00-multus.conflist"
    path.write_text(json.dumps(host.written() | {"name": "edited"}))
    assert any("CNI configuration" in line for line in uninstall_host(host.options()))
    assert not path.exists()


def test_somebody_elses_configuration_is_left_alone(host: "Host") -> None:
    path = host.conf_dir / "00-multus.conf"
    path.write_bytes(UPSTREAMS)
    assert uninstall_host(host.options()) == [f"left {path}: it was not made by multus"]
    assert path.read_bytes() == UPSTREAMS


def test_two_that_install_at_once_wait_for_each_other(host: "Host") -> None:
    with (
        holding(host.bin_dir),
        pytest.raises(InstallError, match="another program installs"),
        holding(host.bin_dir, patience=0.05),
    ):
        raise AssertionError("both hold it")
    with holding(host.bin_dir, patience=0):
        pass
