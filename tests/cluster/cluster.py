"""A real Kubernetes of one node: etcd, API server, controllers, scheduler, containerd and kubelet on a `Node`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster import binaries, image
from tests.cluster.node import Node, NodeError
from tests.cluster.pki import Pki

NODE_NAME: Final = "node1"
_NODE_IP: Final = "10.200.0.1"
_SERVICE_IP: Final = "10.96.0.1"
_SERVICES: Final = "10.96.0.0/16"
_API: Final = "https://127.0.0.1:6443"
PAUSE: Final = "localhost/pause:1"
BUSYBOX: Final = "localhost/busybox:1"
# What stands for Flannel: it, too, makes a bridge with host-local addresses on each node, under this file name.
DEFAULT_NETWORK: Final = {
    "cniVersion": "1.0.0",
    "name": "cbr0",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
BRIDGES: Final = ("cni0", "second0")  # which plugins make for the first pod, and leave
_DEBIAN: Final = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "etcd", "iptables", "openssl", "apt-get")


def absent() -> list[str]:
    """Debian's programs that this machine lacks."""
    return [name for name in _DEBIAN if shutil.which(name) is None]


class Cluster:
    """The cluster and what tests ask of it. Use as a context."""

    def __init__(self, directory: Path) -> None:
        self._bin = binaries.directory()
        env = {"PATH": f"{self._bin}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.node = Node(directory, name=NODE_NAME, env=env)
        self.directory = directory

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
        config = f"--kubeconfig={self._pki('admin.kubeconfig')}"
        return self.node.run(str(self._bin / "kubectl"), config, *arguments, stdin=stdin, check=check, seconds=seconds)

    def as_token(self, token: str, *arguments: str, stdin: str = "") -> str:
        """kubectl as whoever the token is of; its output."""
        who = (f"--server={_API}", f"--certificate-authority={self._pki('ca.crt')}", f"--token={token}")
        return self.node.run(str(self._bin / "kubectl"), "--kubeconfig=/dev/null", *who, *arguments, stdin=stdin)

    def patch_status(self, token: str, pod: str, change: object) -> str:
        """The daemon's one write, as it sends it (kubectl would read first): the server's answer.

        :raises NodeError: it refuses.
        """
        path = f"{_API}/api/v1/namespaces/default/pods/{pod}/status"
        arguments = [path, self._pki("ca.crt"), token, json.dumps(change)]
        return self.node.run(sys.executable, "-c", _PATCH, *arguments)

    def restart_api(self) -> None:
        """The API server, after it was stopped."""
        self._start_api_server()
        self.wait_for_api()

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
        return self.kubectl(
            "-n", "kube-system", "logs", "ds/kube-multus-ds", "--all-containers", f"--tail={lines}", check=False
        )

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

    def delete(self, *pods: str) -> None:
        """Delete pods and wait until they are gone."""
        self.kubectl("delete", "pod", *pods, "--wait=true", seconds=90)

    def bring_default_network(self) -> None:
        """What an administrator does first: a network for every pod of the node."""
        self.node.run("tee", "/etc/cni/net.d/10-flannel.conflist", stdin=json.dumps(DEFAULT_NETWORK))

    def node_ready(self) -> bool:
        """Whether the node is Ready."""
        conditions = self.get("node", NODE_NAME)["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def daemon_pod(self) -> str:
        """The name of the daemon's pod."""
        pods = self.get("-n", "kube-system", "pods", "-l", "name=multus")["items"]
        return str(pods[0]["metadata"]["name"])

    def leftovers(self) -> list[str]:
        """What is on the node and should not be when no pod has networks: interfaces, addresses, records."""
        found = []
        for link in json.loads(self.node.run("ip", "-j", "link")):
            if link["ifname"] not in ("lo", "eth0", "wire0", *BRIDGES):
                found.append(f"interface {link['ifname']}")
        networks = "/var/lib/cni/networks"
        for path in self.node.run("sh", "-c", f"find {networks} -type f 2>/dev/null || true").splitlines():
            if not Path(path).name.startswith("last_reserved_ip") and not path.endswith("/lock"):
                found.append(f"address {path}")
        found += [f"namespace {name}" for name in self.node.run("ls", "/run/netns").split()]
        held = json.loads(self.in_daemon("multusctl", "attachments", "--json"))
        return found + [f"journal {each['pod']['name']} ({each['state']})" for each in held]

    def settled(self) -> None:
        """Until nothing is left of pods that were deleted: the kubelet tears some down after the pod is gone.

        :raises NodeError: with what is left.
        """
        try:
            self.node.wait(lambda: not self.leftovers(), "the node to give everything back", seconds=30)
        except NodeError as error:
            raise NodeError(f"{error}; left: {self.leftovers()}\n{self.daemon_log()}") from None

    def deploy(self, overlay: str) -> None:
        """kubectl apply -k of a folder of deploy/, and wait for the daemon."""
        self.kubectl("apply", "-k", str(image.ROOT / "deploy" / overlay))
        self.rolled_out()

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
        where = ("-n", "kube-system", "exec", "ds/kube-multus-ds", "-c", "multus", "--")
        return self.kubectl(*where, *command, check=check)

    def _start(self) -> None:
        node = self.node
        self._network()
        self._pki = Pki(
            self.directory / "pki", node=NODE_NAME, server=_API, addresses=[_NODE_IP, "127.0.0.1", _SERVICE_IP]
        )
        self._write("containerd.toml", _CONTAINERD % {"pause": PAUSE, "runc": shutil.which("runc")})
        self._write("kubelet.yaml", yaml.safe_dump(self._kubelet()))
        self._write("resolv.conf", "# nobody to ask\n")
        node.start("etcd", "etcd", *_flags({
            "name": "n", "data-dir": "/var/lib/etcd/data", "logger": "zap",
            "listen-client-urls": "http://127.0.0.1:2379", "advertise-client-urls": "http://127.0.0.1:2379",
            "listen-peer-urls": "http://127.0.0.1:2380", "initial-advertise-peer-urls": "http://127.0.0.1:2380",
            "initial-cluster": "n=http://127.0.0.1:2380",
        }))  # fmt: skip
        node.start("containerd", "containerd", "--config", str(self.directory / "containerd.toml"))
        self._start_api_server()
        images = self._images()
        node.wait(lambda: node.run("ctr", "version", check=False), "containerd", watch="containerd")
        for archive in images:
            node.run("ctr", "-n", "k8s.io", "image", "import", str(archive))
        self.wait_for_api()
        for name in ("controller-manager", "scheduler"):
            config = self._pki(f"{name}.kubeconfig")
            extra = {
                "service-account-private-key-file": self._pki("sa.key"),
                "root-ca-file": self._pki("ca.crt"),
                "use-service-account-credentials": "true",
            } if name == "controller-manager" else {}  # fmt: skip
            node.start(f"kube-{name}", f"kube-{name}", *_flags({
                "kubeconfig": config, "authentication-kubeconfig": config, "authorization-kubeconfig": config,
                "leader-elect": "false", "bind-address": "127.0.0.1", **extra,
            }))  # fmt: skip
        node.start("kubelet", "kubelet", *_flags({
            "config": str(self.directory / "kubelet.yaml"), "kubeconfig": self._pki("kubelet.kubeconfig"),
            "root-dir": "/var/lib/kubelet", "hostname-override": NODE_NAME, "node-ip": _NODE_IP,
        }))  # fmt: skip
        node.wait(lambda: self.kubectl("get", "node", NODE_NAME, check=False), "the node to register", watch="kubelet")
        node.wait(lambda: self.kubectl("get", "sa", "default", check=False), "the default service account")

    def wait_for_api(self) -> None:
        """Until the API server serves."""
        self.node.wait(
            lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok", "the API server",
            watch="kube-apiserver",
        )  # fmt: skip

    def _network(self) -> None:
        """Addresses without any way out; one rule stands for kube-proxy, of which only one service is needed."""
        run = self.node.run
        for address in (_NODE_IP, _SERVICE_IP):
            run("ip", "addr", "add", f"{address}/32", "dev", "lo")
        run("ip", "route", "add", _SERVICES, "dev", "lo", "src", _NODE_IP)
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for chain in ("PREROUTING", "OUTPUT"):
            run("iptables", "-t", "nat", "-A", chain, "-d", f"{_SERVICE_IP}/32", "-p", "tcp", "--dport", "443",
                "-j", "DNAT", "--to-destination", f"{_NODE_IP}:6443")  # fmt: skip
        plugins = Path("/usr/lib/cni")
        run("sh", "-c", f"cp {plugins}/* /opt/cni/bin/")

    def _start_api_server(self) -> None:
        pki = self._pki
        self.node.start("kube-apiserver", "kube-apiserver", *_flags({
            "etcd-servers": "http://127.0.0.1:2379", "bind-address": "0.0.0.0", "secure-port": "6443",
            "advertise-address": _NODE_IP, "client-ca-file": pki("ca.crt"),
            "tls-cert-file": pki("apiserver.crt"), "tls-private-key-file": pki("apiserver.key"),
            "kubelet-client-certificate": pki("apiserver-kubelet-client.crt"),
            "kubelet-client-key": pki("apiserver-kubelet-client.key"),
            "kubelet-certificate-authority": pki("ca.crt"), "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-signing-key-file": pki("sa.key"), "service-account-key-file": pki("sa.pub"),
            "requestheader-client-ca-file": pki("front-proxy-ca.crt"),
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-username-headers": "X-Remote-User", "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": pki("front-proxy-client.crt"),
            "proxy-client-key-file": pki("front-proxy-client.key"),
            "service-cluster-ip-range": _SERVICES, "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction", "allow-privileged": "true",
        }))  # fmt: skip

    def _images(self) -> list[Path]:
        target = self.directory / "images"
        target.mkdir()
        image.build_ours(target / "multus.tar", binaries.cache() / "debs")
        image.build_busybox(target / "busybox.tar", BUSYBOX, command=["sh"])
        image.build_busybox(target / "pause.tar", PAUSE, command=["/bin/sleep", "2147483647"])
        return sorted(target.iterdir())

    def _kubelet(self) -> dict[str, object]:
        pki = self._pki
        return {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki("kubelet-server.crt"),
            "tlsPrivateKeyFile": pki("kubelet-server.key"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.node.cgroup}",
            "failSwapOn": False,
            "failCgroupV1": False,
            "enforceNodeAllocatable": ["pods"],
            "maxPods": 250,
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.directory / "resolv.conf"),
            "staticPodPath": "/etc/kubernetes/manifests",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": dict.fromkeys(("nodefs.available", "nodefs.inodesFree", "imagefs.available"), "1%"),
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "5s",
        }

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)


def _flags(values: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


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
_CONTAINERD: Final = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%(pause)s"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "%(runc)s"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""


def version() -> str:
    """The kubelet's own word."""
    done = subprocess.run([binaries.directory() / "kubelet", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()
