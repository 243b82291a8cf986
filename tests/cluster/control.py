"""Kubernetes' own programs on a `Node`: etcd, containerd, API server, controllers, scheduler, kubelet."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import yaml

from tests.cluster.node import Node
from tests.cluster.pki import Pki

NODE_NAME: Final = "node1"
NODE_IP: Final = "10.200.0.1"
API: Final = "https://127.0.0.1:6443"
PODS: Final = "10.244.0.0/16"  # Flannel's own default
_SERVICE_IP: Final = "10.96.0.1"
_SERVICES: Final = "10.96.0.0/16"
_ETCD: Final = "http://127.0.0.1:2379"
_PLUGINS: Final = Path("/usr/lib/cni")


class Control:
    """The programs: started in order, restarted one by one. Their files are in `directory`."""

    def __init__(self, node: Node, directory: Path, *, pause: str) -> None:
        self._node = node
        self._directory = directory
        self._pause = pause
        self.pki = Pki(directory / "pki", node=NODE_NAME, server=API, addresses=[NODE_IP, "127.0.0.1", _SERVICE_IP])

    def prepare(self) -> None:
        """Addresses, files, and what needs nobody else: etcd and containerd."""
        self.prepare_network()
        self._node.run("sh", "-c", f"cp {_PLUGINS}/* /opt/cni/bin/")
        self._write("containerd.toml", _CONTAINERD % {"pause": self._pause, "runc": shutil.which("runc")})
        self._write("kubelet.yaml", yaml.safe_dump(self._kubelet()))
        self._write("resolv.conf", "# nobody to ask\n")
        self._node.start("etcd", "etcd", *_flags({
            "name": "n", "data-dir": "/var/lib/etcd/data", "logger": "zap",
            "listen-client-urls": _ETCD, "advertise-client-urls": _ETCD,
            "listen-peer-urls": "http://127.0.0.1:2380", "initial-advertise-peer-urls": "http://127.0.0.1:2380",
            "initial-cluster": "n=http://127.0.0.1:2380",
        }))  # fmt: skip
        self.start_containerd()
        self.start_api_server()

    def prepare_network(self) -> None:
        """Addresses without any way out; one rule stands for kube-proxy, of which only one service is needed."""
        run = self._node.run
        run("ip", "addr", "replace", f"{NODE_IP}/24", "dev", "eth0")
        run("ip", "addr", "replace", f"{_SERVICE_IP}/32", "dev", "lo")
        run("ip", "route", "replace", _SERVICES, "dev", "lo", "src", NODE_IP)
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for chain in ("PREROUTING", "OUTPUT"):
            run("iptables", "-t", "nat", "-A", chain, "-d", f"{_SERVICE_IP}/32", "-p", "tcp", "--dport", "443",
                "-j", "DNAT", "--to-destination", f"{NODE_IP}:6443")  # fmt: skip

    def start_containerd(self) -> None:
        """containerd, first or again."""
        self._node.start("containerd", "containerd", "--config", str(self._directory / "containerd.toml"))

    def wait_for_containerd(self) -> None:
        """Until it answers."""
        self._node.wait(lambda: self._node.run("ctr", "version", check=False), "containerd", watch="containerd")

    def start_managers(self) -> None:
        """The controllers and the scheduler."""
        for name in ("controller-manager", "scheduler"):
            config = self.pki(f"{name}.kubeconfig")
            extra = {
                "service-account-private-key-file": self.pki("sa.key"),
                "root-ca-file": self.pki("ca.crt"),
                "use-service-account-credentials": "true",
                "allocate-node-cidrs": "true",
                "cluster-cidr": PODS,
            } if name == "controller-manager" else {}  # fmt: skip
            self._node.start(f"kube-{name}", f"kube-{name}", *_flags({
                "kubeconfig": config, "authentication-kubeconfig": config, "authorization-kubeconfig": config,
                "leader-elect": "false", "bind-address": "127.0.0.1", **extra,
            }))  # fmt: skip

    def start_kubelet(self) -> None:
        """The kubelet, first or again."""
        self._node.start("kubelet", "kubelet", *_flags({
            "config": str(self._directory / "kubelet.yaml"), "kubeconfig": self.pki("kubelet.kubeconfig"),
            "root-dir": "/var/lib/kubelet", "hostname-override": NODE_NAME, "node-ip": NODE_IP,
        }))  # fmt: skip

    def start_api_server(self) -> None:
        """The API server, first or again."""
        pki = self.pki
        self._node.start("kube-apiserver", "kube-apiserver", *_flags({
            "etcd-servers": _ETCD, "bind-address": "0.0.0.0", "secure-port": "6443",
            "advertise-address": NODE_IP, "client-ca-file": pki("ca.crt"),
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

    def wait_for_api(self, ready: Callable[[], object]) -> None:
        """Until the API server serves."""
        self._node.wait(ready, "the API server", watch="kube-apiserver")

    def _kubelet(self) -> dict[str, object]:
        pki = self.pki
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
            "cgroupRoot": f"/{self._node.cgroup}",
            "failSwapOn": False,
            "failCgroupV1": False,
            "enforceNodeAllocatable": ["pods"],
            "maxPods": 250,
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self._directory / "resolv.conf"),
            "staticPodPath": "/etc/kubernetes/manifests",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": dict.fromkeys(("nodefs.available", "nodefs.inodesFree", "imagefs.available"), "1%"),
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "5s",
        }

    def _write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text)


def _flags(values: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


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
