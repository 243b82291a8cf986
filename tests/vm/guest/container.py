"""A container as a runtime makes one: in a pod's network, with those devices, folders, CPUs, memory and rights that it
was given.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from devices.kubelet.api import deviceplugin_pb2 as api
from multus.cli.box import Sandbox
from tests.vm.guest.hardware import until

CGROUPS: Final = Path("/sys/fs/cgroup")
_CONTROLLERS: Final = "+cpuset +hugetlb"
_RIGHTS: Final = "setpriv --no-new-privs --bounding-set=-all,+ipc_lock --inh-caps=-all"
_NODES: Final = ("null", "zero", "full", "random", "urandom", "tty")


class Container:
    """Waits, as a pod's program does not, for `go`; `command` runs in it then.

    `given` are the answers of device plugins, `folders` more mounts (host's by container's), `directory` is a place for
    what it needs while it runs.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        command: str,
        *,
        given: Sequence[api.ContainerAllocateResponse],
        folders: Mapping[str, Path],
        directory: Path,
        cpus: str,
        hugepages_mb: int,
    ) -> None:
        self.log = directory / "container.log"
        self._cgroup = CGROUPS / "kubepods" / f"pod{sandbox.pod.uid}" / "a1".ljust(64, "0")
        self._limits = cpus, hugepages_mb
        self._environment = {name: value for one in given for name, value in one.envs.items()}
        mounts = {**{each.container_path: each.host_path for one in given for each in one.mounts}, **folders}
        nodes = {each.container_path: each.host_path for one in given for each in one.devices}
        lines = _script(self._cgroup, directory / "dev", nodes, {path: str(host) for path, host in mounts.items()})
        lines.append(f"exec {_RIGHTS} sh -c {shlex.quote(f'read go && {command}')}")
        enter = ["nsenter", f"--net={sandbox.netns}", "unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child"]
        self._command = [*enter, "sh", "-ec", "\n".join(lines)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._make_cgroup(*self._limits)
            with self.log.open("wb") as log:
                environment = {**os.environ, **self._environment}
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
                )
            until(self._waits, lambda: f"the container: {self.said}")
        except BaseException:
            self.close()
            raise
        return self

    def _waits(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.said
        try:
            return "NoNewPrivs:\t1" in Path(f"/proc/{self.pid}/status").read_text()
        except (OSError, ValueError):  # it is being made
            return False

    def _make_cgroup(self, cpus: str, hugepages_mb: int) -> None:
        (CGROUPS / "cgroup.subtree_control").write_text(_CONTROLLERS)
        for above in (self._cgroup.parent.parent, self._cgroup.parent):
            above.mkdir(exist_ok=True)
            (above / "cgroup.subtree_control").write_text(_CONTROLLERS)
        self._cgroup.mkdir()
        (self._cgroup / "cpuset.cpus").write_text(cpus)
        for name in ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"):
            (self._cgroup / name).write_text(str(hugepages_mb << 20))

    def _pids(self) -> list[int]:
        return [int(pid) for pid in (self._cgroup / "cgroup.procs").read_text().split()]

    @property
    def pid(self) -> int:
        """Its only process."""
        (found,) = self._pids()
        return found

    @property
    def said(self) -> str:
        """What its program printed."""
        return self.log.read_text(errors="replace")

    def go(self) -> None:
        """Start the command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def stop(self) -> int:
        """Have its program end, as by Ctrl-C; its exit code."""
        assert self._process is not None
        os.kill(self.pid, signal.SIGINT)
        return self._process.wait(30)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of it is left."""
        if self._process is not None:
            (self._cgroup / "cgroup.kill").write_text("1")
            self._process.kill()
            self._process.communicate()
            until(lambda: not self._pids(), "the container's processes to be gone")
        for path in (self._cgroup, *self._cgroup.parents[:2]):
            if path.exists():
                path.rmdir()
        (CGROUPS / "cgroup.subtree_control").write_text(_CONTROLLERS.replace("+", "-"))


def _script(cgroup: Path, dev: Path, nodes: Mapping[str, str], mounts: Mapping[str, str]) -> list[str]:
    """What a runtime does between making namespaces and starting the program."""
    lines = [f"echo 0 > {cgroup}/cgroup.procs", "mount --make-rprivate /", f"mkdir {dev}"]
    lines.append(f"mount -t tmpfs -o mode=755 dev {dev}")
    lines += [f"cp -a /dev/{name} {dev}/{name}" for name in _NODES]
    for inside, host in nodes.items():
        target = dev / inside.removeprefix("/dev/")
        lines += [f"mkdir -p {target.parent}", f"cp -a {host} {target}"]
    # What is mounted below the machine's own /dev would still be listed, and EAL would look for its hugetlbfs.
    lines.append("for each in pts shm hugepages; do umount -ql /dev/$each || true; done")
    lines += [f"mkdir {dev}/shm", f"mount -t tmpfs shm {dev}/shm", f"mount --move {dev} /dev"]
    lines += ["mount -t tmpfs run /run", "mount -t proc proc /proc", "mount -t sysfs -o ro sysfs /sys"]
    for inside, host in mounts.items():
        lines += [f"mkdir -p {inside}", f"mount --bind {host} {inside}", f"mount -o remount,bind,ro {inside}"]
    lines.append("mount -t tmpfs tmp /tmp")
    return lines
