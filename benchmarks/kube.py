"""Kubernetes' own API server on a node, with an etcd: what `--apiserver real` asks instead of the light stand-in.

The programs are the cluster lane's. Nobody else runs: no controllers, no scheduler; pods are made bound to the node.
"""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.nodes import PORT
from devices.linux import netns
from multus.cli.box import Box
from tests.cluster import binaries
from tests.cluster.pki import Pki

_CRD: Final = Path(__file__).parent.parent / "deploy" / "base" / "crd.yaml"
_TOKEN: Final = "benchmark"
_PODS: Final = "/api/v1/namespaces/default/pods"
_NADS: Final = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions"
_KINDS: Final = ("pods", "network-attachment-definitions")
_STATUS: Final = "k8s.v1.cni.cncf.io/network-status"
_ETCD: Final = "http://127.0.0.1:2379"
_METRIC = re.compile(r"^(apiserver_request_total|apiserver_longrunning_requests)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_VERBS: Final = {"POST": "create"}
_PATIENCE: Final = 90.0  # seconds until it serves
_ANSWER: Final = 30.0


def absent() -> str:
    """Why there can be no real API server here, "" when there can."""
    if not os.access(binaries.directory() / "kube-apiserver", os.X_OK):
        return f"no kube-apiserver in {binaries.directory()}: python -m tests.cluster.binaries builds it, once"
    missing = [name for name in ("etcd", "openssl") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


class RealApiServer:
    """etcd and kube-apiserver in a box's namespaces; both end with it."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.account = box.directory / "account"
        self.account.mkdir()
        self._pki = Pki(box.directory / "pki", node="box", server=f"https://127.0.0.1:{PORT}", addresses=["127.0.0.1"])
        shutil.copy(self._pki("ca.crt"), self.account / "ca.crt")
        (self.account / "token").write_text(_TOKEN)
        self._tls = ssl.create_default_context(cafile=self._pki("ca.crt"))
        self._client: http.client.HTTPConnection | None = None
        self._counted: Counter[str] = Counter()
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
            self._define()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The API server's; etcd's CPU is not counted."""
        return self._processes[-1].pid

    def ask(self, do: str, **arguments: Any) -> Any:
        """As the stand-in's: pod, nad, delete, status, watching, requests."""
        match do:
            case "pod":
                return self._pod(**arguments)["metadata"]["uid"]
            case "nad":
                self._json("POST", _NADS, {
                    "apiVersion": "k8s.cni.cncf.io/v1",
                    "kind": "NetworkAttachmentDefinition",
                    "metadata": {"name": arguments["name"]},
                    "spec": {"config": arguments["config"]},
                })  # fmt: skip
            case "delete":
                self._json("DELETE", f"{_PODS}/{arguments['name']}", {"gracePeriodSeconds": 0})
            case "status":
                found = self._json("GET", f"{_PODS}/{arguments['name']}")["metadata"].get("annotations", {})
                return json.loads(found[_STATUS]) if _STATUS in found else None
            case "watching":
                now = self._metrics("apiserver_longrunning_requests")
                return [now[f"watch {kind}"] for kind in _KINDS]
            case "requests":
                return self._requests()
        return None

    def close(self) -> None:
        """End both."""
        if self._client is not None:
            self._client.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait(10)

    def _start(self) -> None:
        data = self._box.directory / "etcd"
        data.mkdir()
        self._box.host("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(data))  # what it syncs reaches no disk
        peer = "http://127.0.0.1:2380"
        self._run("etcd", "etcd", {
            "name": "n", "data-dir": str(data / "data"), "logger": "zap",
            "listen-client-urls": _ETCD, "advertise-client-urls": _ETCD,
            "listen-peer-urls": peer, "initial-advertise-peer-urls": peer, "initial-cluster": f"n={peer}",
        })  # fmt: skip
        tokens = self._box.directory / "tokens.csv"
        tokens.write_text(f'{_TOKEN},admin,admin,"system:masters"\n')
        pki = self._pki
        self._run("kube-apiserver", str(binaries.directory() / "kube-apiserver"), {
            "etcd-servers": _ETCD, "bind-address": "127.0.0.1", "secure-port": str(PORT),
            "advertise-address": "10.200.0.1", "endpoint-reconciler-type": "none",
            "client-ca-file": pki("ca.crt"), "token-auth-file": str(tokens),
            "tls-cert-file": pki("apiserver.crt"), "tls-private-key-file": pki("apiserver.key"),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-signing-key-file": pki("sa.key"), "service-account-key-file": pki("sa.pub"),
            "service-cluster-ip-range": "10.96.0.0/16", "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction", "disable-admission-plugins": "ServiceAccount",
        })  # fmt: skip

    def _run(self, name: str, program: str, flags: dict[str, str]) -> None:
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        with (self._box.directory / f"{name}.log").open("ab") as log:
            command: Sequence[str] = [*self._box.enter, "setpriv", "--pdeathsig", "KILL", program, *words]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._box.directory)
            )

    def _define(self) -> None:
        """Wait until it serves, and let it know what a NetworkAttachmentDefinition is."""
        self._until("/readyz")
        self._until("/api/v1/namespaces/default")
        for crd in yaml.safe_load_all(_CRD.read_text(encoding="utf-8")):
            if crd and crd["kind"] == "CustomResourceDefinition":
                self._json("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        self._until(_NADS)

    def _until(self, path: str) -> None:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                if self._request("GET", path)[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                self._client = None
            if any(process.poll() is not None for process in self._processes):
                break
            time.sleep(0.2)
        log = (self._box.directory / "kube-apiserver.log").read_text(errors="replace").splitlines()
        raise RuntimeError(f"kube-apiserver does not serve {path}:\n" + "\n".join(log[-15:]))

    def _pod(self, name: str, annotations: dict[str, str]) -> Any:
        container = {"name": "main", "image": "none"}
        return self._json("POST", _PODS, {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": "box", "terminationGracePeriodSeconds": 0, "containers": [container]},
        })  # fmt: skip

    def _requests(self) -> Counter[str]:
        """Those that ended since they were asked for last, by "patch pods" and the like."""
        now = self._metrics("apiserver_request_total")
        counted = now - self._counted
        self._counted = now
        return counted

    def _metrics(self, wanted: str) -> Counter[str]:
        status, body = self._request("GET", "/metrics")
        if status != 200:
            raise RuntimeError(f"kube-apiserver's metrics: {status}")
        found: Counter[str] = Counter()
        for name, labels, value in _METRIC.findall(body.decode()):
            given = dict(_LABEL.findall(labels))
            if name == wanted and given.get("resource") in (*_KINDS, "events"):
                verb = _VERBS.get(given["verb"], given["verb"].lower())
                found[f"{verb} {given['resource']}"] += int(float(value))
        return found

    def _json(self, method: str, path: str, body: object = None) -> Any:
        status, answer = self._request(method, path, body)
        if status >= 300:
            raise RuntimeError(f"kube-apiserver: {method} {path}: {status}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer)

    def _request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        if self._client is None:
            self._client = http.client.HTTPSConnection("127.0.0.1", PORT, context=self._tls, timeout=_ANSWER)
            plain = netns.run_in(
                f"/proc/{self._box.holder}/ns/net", socket.create_connection, ("127.0.0.1", PORT), _ANSWER
            )
            self._client.sock = self._tls.wrap_socket(plain, server_hostname="127.0.0.1")
        headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        self._client.request(method, path, body=data, headers=headers)
        answer = self._client.getresponse()
        return answer.status, answer.read()
