"""A node in a box: network and mount namespaces of its own, multusd in them on a folder of YAML, and pods as processes.

The demo, the tests of the kernel lane and the benchmarks run on it: real plugins, real namespaces, and nothing of the
machine's own network or state is touched. Every namespace is held by a process that dies with its parent, so that
nothing outlives a test that was killed.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from multus.cli import runtime
from multus.kube.objects import Pod

IPAM_DIR: Final = Path("/var/lib/cni")
PLUGIN_DIRS: Final = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
_UID: Final = "00000000-0000-4000-8000-{:012d}"

DEFAULT_NETWORK: Final = {
    "cniVersion": "1.0.0",
    "name": "cluster-net",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.1.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
"""What stands for Flannel: it too makes a bridge with host-local addresses on each node."""


class BoxError(runtime.RuntimeFailure):
    """The box cannot be set up or does not answer."""


def plugin_dir() -> Path:
    """Where the reference plugins are on this machine.

    :raises BoxError: nowhere.
    """
    for directory in PLUGIN_DIRS:
        if (directory / "macvlan").exists() and (directory / "host-local").exists():
            return directory
    raise BoxError("the reference CNI plugins are not installed", hint="apt-get install containernetworking-plugins")


class Sandbox:
    """A pod's network namespace, held by a process as a container runtime's pause container does."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self._holder = _hold(["--net"])
        self.netns = f"/proc/{self._holder.pid}/ns/net"

    def run(self, *command: str) -> str:
        """Run a program in the namespace; its output."""
        return _run(["nsenter", f"--net={self.netns}", *command])

    def close(self) -> None:
        """The namespace goes, with all that is in it."""
        _end(self._holder)


class Box:
    """The node. `settings` go over the daemon's; `env` is added to its environment."""

    patience = 30.0
    """Seconds for multusd, and for whatever else is waited for."""
    pause = 0.005
    """Seconds between two looks."""
    probe = b"GET /readyz HTTP/1.1\r\nHost: box\r\n\r\n"

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, object] | None = None,
        default: Mapping[str, object] = DEFAULT_NETWORK,
        plugins: Path | None = None,
        multusd: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.manifests = directory / "manifests"
        self.conf_dir = directory / "net.d"
        self.autoconf_dir = directory / "cluster.d"
        self.state = directory / "multus"
        self.ipam = directory / "cni"
        self.socket_dir = directory / "run"
        self.config = directory / "daemon-config.json"
        self.log = directory / "multusd.log"
        self.shim = runtime.default_shim()
        self._settings = dict(settings or {})
        self._default = default
        self._plugins = plugins or plugin_dir()
        self._multusd = list(multusd) or [sys.executable, "-m", "multus.daemon"]
        self._holder: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.pods: dict[str, Sandbox] = {}
        self._count = 0

    def __enter__(self) -> Self:
        for path in (self.manifests, self.conf_dir, self.autoconf_dir, self.state, self.ipam, self.socket_dir):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        suffix = "conflist" if "plugins" in self._default else "conf"
        (self.autoconf_dir / f"10-cluster-net.{suffix}").write_text(json.dumps(self._default))
        self.configure()
        IPAM_DIR.mkdir(parents=True, exist_ok=True)
        self._holder = _hold(["--net", "--mount"])
        try:
            self.host("mount", "--bind", str(self.ipam), str(IPAM_DIR))
            self.host("ip", "link", "set", "lo", "up")
            # What a machine has as its way out, for macvlan and the like to stand on.
            self.host("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire0")
            for name in ("eth0", "wire0"):
                self.host("ip", "link", "set", name, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started here."""
        for sandbox in self.pods.values():
            sandbox.close()
        self.pods.clear()
        if self.daemon is not None:
            _end(self.daemon)
            self.daemon = None
        if self._holder is not None:
            _end(self._holder)
            self._holder = None

    def configure(self, **changed: object) -> None:
        """Write the daemon's file; `changed` keys stay for later calls."""
        self._settings |= changed
        settings = {
            "cniVersion": "1.0.0",
            "socketDir": str(self.socket_dir),
            "cniConfigDir": str(self.conf_dir),
            "multusAutoconfigDir": str(self.autoconf_dir),
            "cniDir": str(self.state),
            "binDir": str(self._plugins),
            "confDir": str(self.directory / "multus.d"),
            "manifests": str(self.manifests),
            "deviceInfoDir": str(self.directory / "devinfo"),
            "kubeletDir": str(self.directory / "kubelet"),
            "nodeName": "box",
            "logToStderr": True,
            **self._settings,
        }
        self.config.write_text(json.dumps(settings, indent=2))

    @property
    def holder(self) -> int:
        """The process that holds the node's namespaces."""
        assert self._holder is not None
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        """What to put before a command line to run it as on the node."""
        return ["nsenter", f"--target={self.holder}", "--net", "--mount", "--root"]  # --root: this may be a chroot

    def host(self, *command: str) -> str:
        """Run a program as on the node; its output."""
        return _run([*self.enter, *command])

    def start(self, *, env: Mapping[str, str] | None = None, wait: bool = True) -> float:
        """Start multusd; seconds until its CNI configuration stands."""
        begin = time.perf_counter()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [*self.enter, *_PDEATH, *self._multusd, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )
        if wait:
            self.wait(self._answers, "multusd to answer")
        return time.perf_counter() - begin

    def stop(self) -> None:
        """SIGTERM, as for an upgrade, and wait for the end."""
        assert self.daemon is not None
        self.daemon.terminate()
        self.daemon.wait(40)
        self.daemon = None

    def kill(self) -> None:
        """kill -9."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait(10)
        self.daemon = None

    def apply(self, name: str, *documents: Mapping[str, Any]) -> None:
        """As kubectl apply: objects into the folder, as one file."""
        target = self.manifests / f"{name}.yaml"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump_all(documents))
        temporary.replace(target)

    def pod(self, name: str, *, annotations: Mapping[str, str] | None = None, namespace: str = "default") -> Sandbox:
        """A pod in the folder, and its sandbox; not attached yet."""
        self._count += 1
        uid = _UID.format(self._count)
        metadata = {"name": name, "namespace": namespace, "uid": uid, "annotations": dict(annotations or {})}
        spec = {"nodeName": "box", "containers": [{"name": "main", "image": "none"}]}
        self.apply(f"pod-{namespace}-{name}", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        sandbox = Sandbox(Pod(namespace=namespace, name=name, uid=uid))
        self.pods[name] = sandbox
        return sandbox

    def nad(self, name: str, config: Mapping[str, Any], *, namespace: str = "default", **metadata: Any) -> None:
        """A NetworkAttachmentDefinition in the folder."""
        self.apply(
            f"nad-{namespace}-{name}",
            {
                "apiVersion": "k8s.cni.cncf.io/v1",
                "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name, "namespace": namespace, **metadata},
                "spec": {"config": json.dumps(config)},
            },
        )

    def conf(self) -> bytes:
        """What a runtime would hand to the plugin."""
        return runtime.conf_in_force(self.conf_dir)[0]

    def cni(self, command: str, sandbox: Sandbox, *, conf: bytes | None = None, **extra: str) -> runtime.Outcome:
        """One call of the runtime for a pod.

        :raises CNIError: the answer, when it is an error.
        """
        return runtime.call(
            command,
            shim=self.shim,
            conf=conf if conf is not None else self.conf(),
            pod=sandbox.pod,
            netns=sandbox.netns,
            extra=extra,
        )

    def remove(self, name: str) -> None:
        """The pod goes: its namespace and its YAML; the runtime's DEL is the caller's."""
        sandbox = self.pods.pop(name)
        sandbox.close()
        (self.manifests / f"pod-{sandbox.pod.namespace}-{name}.yaml").unlink(missing_ok=True)

    def status(self, name: str, namespace: str = "default") -> Any:
        """The network-status that was written for a pod, None when there is none."""
        path = self.manifests / "status" / f"{namespace}_{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def recorded(self) -> list[str]:
        """What the daemon still holds as attached."""
        from multus.journal import read_journal

        return [f"journal {each.container_id} ({each.state})" for each in read_journal(self.state / "journal.db")]

    def leftovers(self) -> list[str]:
        """What is on the node and should not be when no pod is attached: interfaces, addresses, files, rows."""
        found = []
        for link in json.loads(self.host("ip", "-j", "link")):
            if link["ifname"] not in ("lo", "eth0", "wire0", "cni0"):
                found.append(f"interface {link['ifname']}")
        for path in sorted(self.ipam.rglob("*")):
            if path.is_file() and not path.name.startswith("last_reserved_ip") and path.name != "lock":
                found.append(f"address {path.relative_to(self.ipam)}")
        found += self.recorded()
        for directory in (self.state / "results", self.state / "spool", self.directory / "devinfo" / "cni"):
            found += [f"file {path.name}" for path in directory.rglob("*") if path.is_file()]
        return found

    def wait(self, condition: Callable[[], object], what: str, *, seconds: float = 0.0) -> None:
        """Poll until the condition holds.

        :raises BoxError: it never did; the end of the daemon's log is in the message.
        """
        seconds = seconds or self.patience
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            if self.daemon is not None and self.daemon.poll() is not None:
                raise BoxError(f"multusd ended with {self.daemon.returncode} while waiting for {what}: {self._tail()}")
            time.sleep(self.pause)
        raise BoxError(f"waited {seconds:g} s for {what}: {self._tail()}")

    def _answers(self) -> bool:
        """Whether multusd says that it is ready; a socket's file may be a predecessor's."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(str(self.socket_dir / "multus.sock"))
                client.sendall(self.probe)
                return b" 200 " in client.recv(64)
            except OSError:
                return False

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-15:])


_PDEATH: Final = ("setpriv", "--pdeathsig", "KILL")


def _hold(namespaces: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process that holds new namespaces and does nothing else; it has entered them when this returns."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        raise BoxError("network namespaces cannot be made here", hint="run as root, with util-linux installed")
    holder = subprocess.Popen(
        [unshare, *namespaces, *_PDEATH, "sh", "-c", "echo; exec sleep infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdout is not None
    if holder.stdout.readline() == b"":
        _, said = holder.communicate()
        raise BoxError(f"unshare {' '.join(namespaces)}: {said.decode(errors='replace').strip()}")
    holder.stdout.close()
    if holder.stderr is not None:
        holder.stderr.close()
    return holder


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise BoxError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
