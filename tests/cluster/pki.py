"""Certificates and kubeconfigs for one cluster; good for a day."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

_DAYS: Final = "1"
USERS: Final = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
}


class Pki:
    """A certificate authority in a directory, and what it signed."""

    def __init__(self, directory: Path, *, node: str, server: str, addresses: Sequence[str]) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700)
        services = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        names = ",".join([*(f"DNS:{name}" for name in services), *(f"IP:{address}" for address in addresses)])
        self._authority("ca")
        self._authority("front-proxy-ca")
        self._sign("apiserver", "/CN=kube-apiserver", "serverAuth", names)
        self._sign("kubelet-server", f"/CN={node}", "serverAuth", f"DNS:{node},IP:{addresses[0]}")
        self._sign("apiserver-kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client", "clientAuth")
        self._sign("front-proxy-client", "/CN=front-proxy-client", "clientAuth", authority="front-proxy-ca")
        for user, subject in {**USERS, "kubelet": f"/O=system:nodes/CN=system:node:{node}"}.items():
            self._sign(user, subject, "clientAuth")
            (directory / f"{user}.kubeconfig").write_text(yaml.safe_dump(self._kubeconfig(user, server)))
        self._run("genrsa", "-out", "sa.key", "2048")
        self._run("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def __call__(self, name: str) -> str:
        """The path of a file: `pki("ca.crt")`."""
        return str(self._directory / name)

    def _authority(self, name: str) -> None:
        self._key(name)
        self._run("req", "-x509", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-days", _DAYS,
                  "-out", f"{name}.crt")  # fmt: skip

    def _sign(self, name: str, subject: str, usage: str, names: str = "", *, authority: str = "ca") -> None:
        self._key(name)
        self._run("req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
        extensions = ["basicConstraints=CA:FALSE", "keyUsage=digitalSignature", f"extendedKeyUsage={usage}"]
        if names:
            extensions.append(f"subjectAltName={names}")
        (self._directory / f"{name}.ext").write_text("\n".join(extensions) + "\n")
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
                  "-CAcreateserial", "-days", _DAYS, "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip

    def _key(self, name: str) -> None:
        self._run("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", f"{name}.key")

    def _kubeconfig(self, user: str, server: str) -> dict[str, object]:
        credentials = {"client-certificate": self(f"{user}.crt"), "client-key": self(f"{user}.key")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {"server": server, "certificate-authority": self("ca.crt")}}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "x", "context": {"cluster": "cluster", "user": user}}],
            "current-context": "x",
        }

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self._directory, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {' '.join(arguments)}: {done.stderr.strip()}")
