"""A real Kubernetes of one node: etcd, API server, controllers, scheduler, containerd and kubelet on a `Node`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster import binaries, flannel, image
from tests.cluster.control import API, NODE_NAME, Control
from tests.cluster.node import Node, NodeError

PAUSE: Final = "localhost/pause:1"
BUSYBOX: Final = "localhost/busybox:1"
TOOLS: Final = "localhost/tools:1"  # iproute2 as well
SECOND: Final = "second0"  # the bridge of the tests' further network
_STAY: Final = ("lo", "eth0", "wire0", SECOND, *flannel.LINKS)  # interfaces that a node without pods may have
_GIVEN_IMAGE: Final = os.environ.get("MULTUS_CLUSTER_IMAGE", "")
"""The archive of an image of deploy/Containerfile, made by a builder; without one the lane makes its own."""
_IPROUTE: Final = (
    *("iproute2", "libbpf1", "libbsd0", "libcap2", "libelf1", "libmd0", "libmnl0", "zlib1g", "libzstd1"),
    *("libselinux1", "libpcre2-8-0", "libxtables12"),
)
_MULTUSCTL: Final = (sys.executable, "-m", "multus.cli")
_DEBIAN: Final = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "etcd", "iptables", "openssl", "apt-get")


def absent() -> list[str]:
    """Debian's programs that this machine lacks."""
    return [name for name in (*_DEBIAN, "busybox") if shutil.which(name) is None]


class Cluster:
    """The cluster and what tests ask of it. Use as a context."""

    def __init__(self, directory: Path) -> None:
        self._bin = binaries.directory()
        path = f"{self._bin}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "HOME": str(directory), "PYTHONPATH": str(image.ROOT)}
        self.node = Node(directory, name=NODE_NAME, env=env)
        self.directory = directory
        self._deployed = False

    def __enter__(self) -> "Cluster":
        self.node.__enter__()
        try:
            self._start()
        except BaseException:
            self.node.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.node.close()

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True, seconds: float = 60.0) -> str:
        """kubectl as the administrator; its output."""
        config = f"--kubeconfig={self.control.pki('admin.kubeconfig')}"
        return self.node.run(str(self._bin / "kubectl"), config, *arguments, stdin=stdin, check=check, seconds=seconds)

    def as_token(self, token: str, *arguments: str, stdin: str = "") -> str:
        """kubectl as whoever the token is of; its output."""
        who = (f"--server={API}", f"--certificate-authority={self.control.pki('ca.crt')}", f"--token={token}")
        return self.node.run(str(self._bin / "kubectl"), "--kubeconfig=/dev/null", *who, *arguments, stdin=stdin)

    def patch_status(self, token: str, pod: str, change: object) -> str:
        """The daemon's one write, as it sends it (kubectl would read first): the server's answer.

        :raises NodeError: it refuses.
        """
        path = f"{API}/api/v1/namespaces/default/pods/{pod}/status"
        arguments = [path, self.control.pki("ca.crt"), token, json.dumps(change)]
        return self.node.run(sys.executable, "-c", _PATCH, *arguments)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """kubectl apply of objects."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, *arguments: str) -> Any:
        """kubectl get, as JSON; None for an object that is not there."""
        text = self.kubectl("get", "-o", "json", "--ignore-not-found", *arguments)
        return json.loads(text) if text.strip() else None

    def wait_ready(self, *pods: str, seconds: float = 60.0) -> None:
        """Until the pods are Ready.

        :raises NodeError: they are not; with what the cluster says of them.
        """
        try:
            names = [f"pod/{name}" for name in pods]
            self.kubectl("wait", "--for=condition=Ready", *names, f"--timeout={seconds:g}s", seconds=seconds + 15)
        except NodeError as error:
            told = self.kubectl("describe", "pods", *pods, check=False)
            raise NodeError(f"{error}\n{told[-4000:]}\n{self.daemon_log()}") from None

    def daemon_log(self, lines: int = 30) -> str:
        """The end of the daemon's log."""
        where = ("-n", "kube-system", "logs", "ds/kube-multus-ds", "--all-containers", f"--tail={lines}")
        return self.kubectl(*where, check=False)

    def exec(self, pod: str, *command: str) -> str:
        """Run a program in a pod; its output."""
        return self.kubectl("exec", pod, "--", *command)

    def interfaces(self, pod: str) -> list[str]:
        """Names of the interfaces in a pod."""
        lines = self.exec(pod, "ip", "-o", "link").splitlines()
        return [line.split()[1].rstrip(":").partition("@")[0] for line in lines]

    def network_status(self, pod: str) -> Any:
        """The pod's network-status annotation, decoded; None without one."""
        annotations = self.get("pod", pod)["metadata"].get("annotations", {})
        text = annotations.get("k8s.v1.cni.cncf.io/network-status")
        return json.loads(text) if text else None

    def delete(self, *pods: str, seconds: float = 90.0) -> None:
        """Delete pods and wait until they are gone."""
        self.kubectl("delete", "pod", *pods, "--wait=true", seconds=seconds)

    def delete_all(self, *, seconds: float = 60.0) -> None:
        """Delete every pod of the default namespace, and wait until the node has given everything back."""
        self.kubectl("delete", "pods", "--all", "--wait=true", f"--timeout={seconds:g}s", seconds=seconds + 10)
        self.node.run("ip", "link", "delete", SECOND, check=False)
        self.settled()

    def bring_default_network(self) -> None:
        """What an administrator does first: a network for every pod of the node."""
        self.kubectl("apply", "-f", str(flannel.MANIFEST))
        where = ("-n", "kube-flannel", "rollout", "status", "ds/kube-flannel-ds", "--timeout=60s")
        try:
            self.kubectl(*where, seconds=70)
        except NodeError as error:
            told = self.kubectl("-n", "kube-flannel", "logs", "ds/kube-flannel-ds", "--all-containers", check=False)
            raise NodeError(f"{error}\n{told[-4000:]}") from None

    def node_ready(self) -> bool:
        """Whether the node is Ready."""
        conditions = self.get("node", NODE_NAME)["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def daemon_pod(self) -> str:
        """The name of the daemon's pod: of the new one while an old one goes."""
        pods = self.get("-n", "kube-system", "pods", "-l", "name=multus")["items"]
        staying = [each["metadata"]["name"] for each in pods if "deletionTimestamp" not in each["metadata"]]
        return str(staying[0])

    def attachments(self) -> list[dict[str, Any]]:
        """What the journal holds, read on the node: the API server may be away."""
        held: list[dict[str, Any]] = json.loads(self.node.run(*_MULTUSCTL, "attachments", "--json"))
        return held

    def leftovers(self) -> list[str]:
        """What is on the node and should not be when no pod has networks: interfaces, addresses, records."""
        links = json.loads(self.node.run("ip", "-j", "link"))
        found = [f"interface {each['ifname']}" for each in links if each["ifname"] not in _STAY]
        listing = "find /var/lib/cni/networks /var/lib/cni/flannel -type f 2>/dev/null; ls -d /run/netns/* 2>/dev/null"
        for path in self.node.run("sh", "-c", f"{listing}; true").splitlines():
            if not Path(path).name.startswith("last_reserved_ip") and not path.endswith("/lock"):
                found.append(path)
        return found + [f"journal {each['pod']['name']} ({each['state']})" for each in self.attachments()]

    def settled(self, *, seconds: float = 60.0) -> None:
        """Until nothing is left of pods that were deleted: the kubelet tears some down after the pod is gone.

        :raises NodeError: with what is left.
        """
        try:
            self.node.wait(lambda: not self.leftovers(), "the node to give everything back", seconds=seconds)
        except NodeError as error:
            raise NodeError(f"{error}; left: {self.leftovers()}\n{self.daemon_log()}") from None

    def deploy(self, overlay: str) -> None:
        """kubectl apply -k of a folder of deploy/, and wait for the daemon."""
        self.kubectl("apply", "-k", str(image.ROOT / "deploy" / overlay))
        self.rolled_out()
        self._deployed = True

    def bring_multus(self) -> None:
        """The default network and multus, unless they are there."""
        if not self._deployed:
            self.bring_default_network()
            self.deploy("plain")

    def rolled_out(self) -> None:
        """Until the daemon is as its DaemonSet says.

        :raises NodeError: it is not; with what the cluster says of it.
        """
        try:
            self.kubectl("-n", "kube-system", "rollout", "status", "ds/kube-multus-ds", "--timeout=60s", seconds=80)
        except NodeError as error:
            told = self.kubectl("-n", "kube-system", "describe", "pods", check=False)
            raise NodeError(f"{error}\n{told[-6000:]}\n{self.daemon_log()}") from None

    def in_daemon(self, *command: str, check: bool = True) -> str:
        """Run a program in the daemon's container; its output."""
        where = ("-n", "kube-system", "exec", self.daemon_pod(), "-c", "multus", "--")
        return self.kubectl(*where, *command, check=check)

    def wait_for_api(self) -> None:
        """Until the API server serves."""
        self.control.wait_for_api(lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok")

    def _start(self) -> None:
        node = self.node
        self.control = Control(node, self.directory, pause=PAUSE)
        self.control.prepare()
        images = self._images()
        self.control.wait_for_containerd()
        for archive in images:
            node.run("ctr", "-n", "k8s.io", "image", "import", str(archive))
        self.wait_for_api()
        self.control.start_managers()
        self.control.start_kubelet()
        node.wait(lambda: self.kubectl("get", "node", NODE_NAME, check=False), "the node to register", watch="kubelet")
        node.wait(lambda: self.kubectl("get", "sa", "default", check=False), "the default service account")

    def _images(self) -> list[Path]:
        target, debs = self.directory / "images", binaries.cache() / "debs"
        target.mkdir()

        def ours(path: Path) -> None:
            if _GIVEN_IMAGE:
                shutil.copy(_GIVEN_IMAGE, path)
            else:
                image.build_ours(path, debs)

        makers: dict[str, Callable[[Path], None]] = {
            "multus": ours,
            "flannel": lambda path: flannel.build_image(path, debs),
            "tools": lambda path: image.build_debian(path, TOOLS, debs, _IPROUTE),
            "busybox": lambda path: image.build_busybox(path, BUSYBOX, command=["sh"]),
            "pause": lambda path: image.build_busybox(path, PAUSE, command=["/bin/sleep", "2147483647"]),
        }
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: makers[name](target / f"{name}.tar"), makers))
        return sorted(target.iterdir())


_PATCH: Final = """
import ssl, sys, urllib.error, urllib.request
url, ca, token, body = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
request = urllib.request.Request(url, body.encode(), headers, method="PATCH")
try:
    print(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ca)).status)
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode())
"""


def versions() -> str:
    """What the lane runs on, for its summary."""
    commands = ([str(binaries.directory() / "kubelet"), "--version"], ["containerd", "--version"])
    told = [subprocess.run(each, capture_output=True, text=True, check=True).stdout.split() for each in commands]
    groups = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    return f"Kubernetes {told[0][1]}, containerd {told[1][2]}, Flannel {binaries.FLANNEL}, control groups {groups}"
