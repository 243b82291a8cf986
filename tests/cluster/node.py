"""A machine for the cluster: namespaces of its own, with Kubernetes' programs in them as its processes.

Of the real machine only control groups of its own are touched, and those are removed. Whatever is written to /etc, /opt
and /var lands in a directory of this node. All processes are in one PID namespace, whose first dies with this program:
so nothing outlives a test that was killed.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
# What the kubelet sets for the whole kernel, panics among them: it sees wanted values and sets nothing.
_SYSCTLS: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_INIT: Final = "echo; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"  # reaps what is left to it
_PRIVATE: Final = ("etc", "opt", "var/lib", "var/log")
_STATE: Final = ("kubelet", "containerd", "etcd")  # on a file system of their own: no overlay upon an overlay


class NodeError(Exception):
    """The node cannot be set up, or a program on it failed; the message has the end of its log."""


class Node:
    """The namespaces and the processes. Use as a context: everything ends with it."""

    def __init__(self, directory: Path, *, name: str, env: Mapping[str, str]) -> None:
        self.directory = directory
        self.name = name
        self.cgroup = f"multus-cluster-{os.getpid()}"
        self._env = dict(env)
        self._holder: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}

    def __enter__(self) -> "Node":
        try:
            self._hold()
            self._furnish()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and with the last one every namespace and mount."""
        for name in reversed(list(self._processes)):
            self.stop(name, seconds=2.0)
        if self._holder is not None:
            if self._init:
                os.kill(self._init, signal.SIGKILL)
            self._holder.kill()
            self._holder.communicate(timeout=10)
            self._holder = None
        for root in self._cgroup_roots():
            for path in sorted(root.glob("**/"), reverse=True):
                _remove(path)

    @property
    def enter(self) -> list[str]:
        """What to put before a command line to run it on this node."""
        return ["nsenter", f"--target={self._init}", "--mount", "--net", "--pid", "--uts", "--ipc"]

    def run(self, *command: str, stdin: str = "", check: bool = True, seconds: float = 60.0) -> str:
        """Run a program on the node; its output.

        :raises NodeError: it failed (unless not `check`), or did not end in time.
        """
        try:
            done = subprocess.run(
                [*self.enter, *command], input=stdin, capture_output=True, text=True, timeout=seconds, env=self._env
            )
        except subprocess.TimeoutExpired:
            raise NodeError(f"{' '.join(command)}: not done after {seconds:g} s") from None
        if check and done.returncode != 0:
            raise NodeError(
                f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}\n{done.stdout.strip()}"
            )
        return done.stdout

    def start(self, name: str, *command: str) -> None:
        """Start a program; its output goes to a log."""
        self._commands[name] = command
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*self.enter, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env,
                start_new_session=True,
            )  # fmt: skip

    def restart(self, name: str) -> None:
        """End a program and start it as before."""
        self.stop(name)
        self.start(name, *self._commands[name])

    def stop(self, name: str, *, seconds: float = 15.0) -> None:
        """SIGTERM, and SIGKILL after `seconds`."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            # nsenter waits for a child, as it has to for a PID namespace; that child is the program.
            for child in _children(process.pid):
                _signal(child, number)
            try:
                process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue
        process.kill()
        process.wait(10)

    def wait(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        seconds: float = 60.0,
        watch: str = "",
        pause: float = 0.1,
    ) -> None:
        """Poll until the condition holds; `pause` is how many seconds pass between looks.

        :param watch: a program without which it never will.
        :raises NodeError: it did not, or the program ended.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            process = self._processes.get(watch)
            if process is not None and process.poll() is not None:
                raise NodeError(
                    f"{watch} ended with {process.returncode} while waiting for {what}:\n{self.tail(watch)}"
                )
            time.sleep(pause)
        raise NodeError(f"waited {seconds:g} s for {what}" + (f":\n{self.tail(watch)}" if watch else ""))

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a program's log."""
        log = self._log(name)
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def _hold(self) -> None:
        unshare = shutil.which("unshare")
        if unshare is None or os.geteuid() != 0:
            raise NodeError("namespaces cannot be made here: run as root, with util-linux installed")
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        spaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", unshare, *spaces, "bash", "-c", _INIT],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            _, said = self._holder.communicate()
            raise NodeError(f"unshare: {said.decode(errors='replace').strip()}")
        self._init = _children(self._holder.pid)[0]

    def _furnish(self) -> None:
        """Files, mounts, control groups and network of the node."""
        self.run("mount", "--make-rprivate", "/")
        self.run("hostname", self.name)
        # A fresh /run keeps it away from this machine's sockets and namespaces; a fresh /sys shows its own network.
        self.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        for path in ("cg", "netns", "lock", "sysctl"):
            self.run("mkdir", "-p", f"/run/{path}")
        self.run("mount", "--rbind", str(_CGROUPS), "/run/cg")
        self.run("mount", "-t", "sysfs", "sysfs", "/sys")
        self.run("mount", "--rbind", "/run/cg", str(_CGROUPS))
        self.run("umount", "-l", "/run/cg")
        for name in _PRIVATE:
            upper, work = self.directory / "over" / name, self.directory / "work" / name
            upper.mkdir(parents=True)
            work.mkdir(parents=True)
            self.run("mount", "-t", "overlay", "overlay", "-o",
                     f"lowerdir=/{name},upperdir={upper},workdir={work}", f"/{name}")  # fmt: skip
        for name in _STATE:
            (self.directory / "state" / name).mkdir(parents=True)
            self.run("mkdir", "-p", f"/var/lib/{name}")
            self.run("mount", "--bind", str(self.directory / "state" / name), f"/var/lib/{name}")
        self.run(
            "mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", "/var/lib/etcd"
        )  # what it syncs need not reach a disk
        for path in ("/etc/cni", "/opt/cni", "/var/lib/cni"):
            self.run("rm", "-rf", path)
        self.run("mkdir", "-p", "/etc/cni/net.d", "/opt/cni/bin")
        for name, value in _SYSCTLS.items():
            fake = f"/run/sysctl/{name.replace('/', '_')}"
            self.run(
                "sh", "-c", f"echo {value} > {fake}; test ! -e /proc/sys/{name} || mount --bind {fake} /proc/sys/{name}"
            )
        # Only now: shared before, the umount above would have taken the control groups with it.
        self.run("mount", "--make-rshared", "/")
        self._make_cgroups()
        self.run("ip", "link", "set", "lo", "up")
        # What a machine has as its way out, for macvlan to stand on; the other end is in nobody's hands.
        self.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire0")
        for name in ("eth0", "wire0"):
            self.run("ip", "link", "set", name, "up")

    def _make_cgroups(self) -> None:
        for root in self._cgroup_roots():
            root.mkdir()
        cpuset = _CGROUPS / "cpuset"
        for name in ("cpuset.cpus", "cpuset.mems"):  # of version 1: empty they admit nobody
            if (cpuset / name).exists():
                (cpuset / self.cgroup / name).write_text((cpuset / name).read_text())

    def _cgroup_roots(self) -> list[Path]:
        if (_CGROUPS / "cgroup.controllers").exists():
            return [_CGROUPS / self.cgroup]
        return [each / self.cgroup for each in _CGROUPS.iterdir() if each.is_dir() and not each.is_symlink()]


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _remove(path: Path) -> None:
    for _ in range(20):
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:  # what was killed is still leaving
            time.sleep(0.05)
