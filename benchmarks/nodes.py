"""The nodes of upstream's two kinds, and what all nodes have."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, cast

from benchmarks import peers
from multus.cli import runtime
from multus.cli.box import DEFAULT_NETWORK, Box, Sandbox

PORT = 6443
"""Where the API server is, on a node's loopback."""

# A single conf and no list: of a list's plugins this upstream's DEL loses the address ranges, so that every address
# leaks and no figure would count.
_PLUGINS = cast("Sequence[Mapping[str, object]]", DEFAULT_NETWORK["plugins"])
_WIDE: Mapping[str, object] = {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/16"}]]}
DEFAULT: Mapping[str, object] = {
    **{key: DEFAULT_NETWORK[key] for key in ("cniVersion", "name")},
    **_PLUGINS[0],
    "ipam": {**_WIDE, "routes": [{"dst": "0.0.0.0/0"}]},
}
"""The default network: a bridge, with addresses for more pods than a node's share."""


class Node(Box):
    """A node whose address files are in memory.

    A file system on a disk looks past every inode that was freed within the last minute before it makes a file (ext4).
    Here thousands are, so that each side would pay for the pods of the others.
    """

    def __enter__(self) -> Self:
        self.ipam.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(self.ipam)], check=True)
        try:
            return super().__enter__()
        except BaseException:
            self._forget()
            raise

    def close(self) -> None:
        """As a box's; the addresses are gone with it."""
        super().close()
        self._forget()

    def _forget(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.ipam)], check=False, stderr=subprocess.DEVNULL)


class Upstream(Node):
    """The node with upstream's thick daemon: it has no journal, and answers another probe."""

    probe = b"GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n"

    def __init__(self, directory: Path) -> None:
        # As in upstream's manifest, but for the paths. Its chroot is left out: that costs it a little more.
        super().__init__(
            directory,
            default=DEFAULT,
            settings={
                "multusConfigFile": "auto",
                "daemonSocketDir": str(directory / "run"),
                "logLevel": "verbose",
                "manifests": "",
            },
            multusd=[str(peers.directory() / "multus-daemon")],
        )
        self.shim = peers.directory() / "multus-shim"

    def recorded(self) -> list[str]:
        """Its scratch files, one a container."""
        return [f"file {path.name}" for path in self.state.iterdir() if path.is_file()]


class Thin(Upstream):
    """The node with upstream's thin plugin, which has no daemon: each call asks the API server itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.shim = peers.directory() / "multus"

    def write_conf(self, account: Path) -> None:
        """What its entrypoint writes: the CNI configuration, and a kubeconfig that it names."""
        kubeconfig = self.directory / "kubeconfig"
        server = {"server": f"https://127.0.0.1:{PORT}", "certificate-authority": str(account / "ca.crt")}
        body = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": server}],
            "users": [{"name": "me", "user": {"token": (account / "token").read_text()}}],
        }
        kubeconfig.write_text(json.dumps(body))
        conf = {
            "cniVersion": "1.0.0",
            "name": "multus-cni-network",
            "type": "multus",
            "logLevel": "error",
            "kubeconfig": str(kubeconfig),
            "cniDir": str(self.state),
            "binDir": str(self._plugins),
            "delegates": [DEFAULT],
        }
        (self.conf_dir / "00-multus.conf").write_text(json.dumps(conf))

    def cni(self, command: str, sandbox: Sandbox, *, conf: bytes | None = None, **extra: str) -> runtime.Outcome:
        """One call of the runtime; the plugin works in the caller's namespaces, so it has to be on the node."""
        return runtime.call(
            command,
            shim=self.shim,
            conf=conf if conf is not None else self.conf(),
            pod=sandbox.pod,
            netns=sandbox.netns,
            extra=extra,
            enter=self.enter,
        )
