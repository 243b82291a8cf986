"""Plugins of a host whose root directory is mounted into the daemon's container (chrootDir)."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from multus.cli.box import Box
from multus.cni.errors import Code
from multus.cni.request import Command
from multus.delegates.plugin import Call, PluginError, Runner

pytestmark = pytest.mark.anyio

# It has to run where there is nothing else, no interpreter and no library.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    char text[64] = "", here[64] = "";
    FILE *file = fopen("/etc/marker", "r");
    if (file) { if (!fgets(text, sizeof text, file)) text[0] = 0; fclose(file); }
    printf("%s %s %s", text, getcwd(here, sizeof here), getenv("CNI_IFNAME"));
    return getenv("CNI_COMMAND")[0] == 'D';
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("program") / "x"
    subprocess.run([compiler, "-static", "-o", target, "-xc", "-"], input=PROGRAM, text=True, check=True)
    return target


@pytest.fixture
def root(tmp_path: Path, program: Path) -> Path:
    made = tmp_path / "hostroot"
    for directory in ("etc", "opt/cni/bin", "opt/vendor"):
        (made / directory).mkdir(parents=True)
    (made / "etc/marker").write_text("inside")
    shutil.copy(program, made / "opt/cni/bin/x")
    shutil.copy(program, made / "opt/vendor/y")
    (made / "opt/cni/bin/y").symlink_to("/opt/vendor/y")  # of the host's root, not of ours
    return made


def _call(command: Command = Command.ADD, path: str = "/opt/cni/bin") -> Call:
    return Call(command=command, conf=b"{}", container_id="c", netns="/n", ifname="net1", path=(path,))


@pytest.mark.parametrize("name", ["x", "y"])
async def test_a_plugin_is_found_and_runs_under_that_root(root: Path, name: str) -> None:
    runner = Runner(chroot=str(root), timeout=lambda: 30.0)
    assert await runner(name, _call()) == b"inside / net1"


async def test_one_that_only_we_have_is_not_found(root: Path, program: Path) -> None:
    runner = Runner(chroot=str(root), timeout=lambda: 30.0)
    with pytest.raises(PluginError, match=f'failed to find plugin "x" in path .* under {root}'):
        await runner("x", _call(path=str(program.parent)))


async def test_a_failure_there_says_where(root: Path) -> None:
    (root / "opt/cni/bin/x").chmod(0o644)
    with pytest.raises(PluginError) as caught:
        await Runner(chroot=str(root), timeout=lambda: 30.0)("x", _call())
    assert f"cannot start /opt/cni/bin/x under {root}: it is not executable" in str(caught.value)


async def test_no_other_thread_is_moved_there(root: Path) -> None:
    runner = Runner(chroot=str(root), timeout=lambda: 30.0)
    before, here = Path("/proc/self/root").readlink(), Path.cwd()
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(runner, "x", _call())
    roots = {Path(f"/proc/self/task/{thread.native_id}/root").readlink() for thread in threading.enumerate()}
    assert roots == {before} and Path.cwd() == here
    assert await anyio.to_thread.run_sync(lambda: Path("/etc/marker").exists()) is False


@pytest.mark.parametrize("kind", ["absent", "file", "NUL"])
async def test_a_root_that_is_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    root = f"{tmp_path}/{kind}" if kind != "NUL" else "/\0"
    with pytest.raises(PluginError, match=r"cannot make .* the root directory: ") as caught:
        await Runner(chroot=root, timeout=lambda: 30.0)("x", _call())
    assert caught.value.code == Code.INVALID_NETWORK_CONFIG


async def test_a_failed_plugin_there(root: Path) -> None:
    with pytest.raises(PluginError, match="error parsing its diagnostic message 'inside / net1'"):
        await Runner(chroot=str(root), timeout=lambda: 30.0)("x", _call(Command.DEL))


async def test_what_is_done_in_the_daemon_reaches_the_host_s_sysctls(
    make_box: Callable[..., Box], tmp_path: Path
) -> None:
    """A container's own /proc/sys is read-only. No plugin is there to be executed instead."""
    hostroot = tmp_path / "hostroot"
    hostroot.mkdir()
    nothing = tmp_path / "bin"
    nothing.mkdir()
    ipam = {"type": "host-local", "subnet": "10.72.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"cniVersion": "1.0.0", "name": "c", "type": "bridge", "isGateway": True, "ipam": ipam}
    box = make_box(default=bridge, plugins=nothing, settings={"chrootDir": str(hostroot)})
    chain = [{"type": "macvlan", "master": "eth0", "ipam": {**ipam, "subnet": "10.73.0.0/24", "routes": []}}]
    chain.append({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.rp_filter": "2"}})
    box.nad("tuned", {"cniVersion": "1.0.0", "plugins": chain})
    box.host("mount", "--rbind", "/", str(hostroot))
    box.host("mount", "--bind", "/proc/sys", "/proc/sys")
    box.host("mount", "-o", "remount,ro,bind", "/proc/sys")
    box.start()
    sandbox = box.pod("pod", annotations={"k8s.v1.cni.cncf.io/networks": "tuned"})
    conf = json.dumps({**json.loads(box.conf()), "daemonSocketDir": str(box.socket_dir)}).encode()
    call = partial(box.cni, sandbox=sandbox, conf=conf)
    await anyio.to_thread.run_sync(call, "ADD")
    assert box.host("cat", f"{hostroot}/proc/sys/net/ipv4/ip_forward") == "1\n"
    values = sandbox.run("sysctl", "-n", "net.ipv4.conf.net1.arp_notify", "net.ipv4.conf.net1.rp_filter")
    assert values.split() == ["1", "2"]
    await anyio.to_thread.run_sync(call, "DEL")
    assert [each for each in box.leftovers() if each != "interface cni0"] == []
