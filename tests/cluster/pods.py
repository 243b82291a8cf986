"""Pods and networks that tests apply, and what those pods have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tests.cluster.cluster import BUSYBOX, Cluster

# It says at once which interfaces it has: a pod must never run with fewer than it asked for.
_TELL: Final = ("sh", "-c", "echo seen $(ls /sys/class/net); exec sleep 1000000")
TWO: Final = {"eth0", "lo", "net1", "net2"}
"""The interfaces of a pod with two further networks."""


def pod(
    name: str,
    networks: str = "",
    *,
    image: str = BUSYBOX,
    resources: Mapping[str, str] = {},
    spec: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """A pod that sleeps, and goes when told."""
    container: dict[str, Any] = {"name": "main", "image": image, "command": list(_TELL)}
    if resources:
        container["resources"] = {"requests": dict(resources), "limits": dict(resources)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": networks} if networks else {}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **spec},
    }


def nad(name: str, config: Mapping[str, Any], *, resource: str = "") -> dict[str, Any]:
    """A network, perhaps of a resource's devices."""
    annotations = {"k8s.v1.cni.cncf.io/resourceName": resource} if resource else {}
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"config": json.dumps(config)},
    }


def bridge(name: str, subnet: str, **more: object) -> dict[str, Any]:
    """A network on the bridge that tests may make."""
    ipam = {"type": "host-local", "subnet": subnet}
    return {"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": "second0", "ipam": ipam, **more}


@contextmanager
def tuned(cluster: Cluster, directory: str, name: str) -> Iterator[str]:
    """A pod while plugins in `directory` are chained that tune its eth0: its arp_filter. Both are gone afterwards."""
    conf = {"cniVersion": "0.3.1", "name": "sysctltwiddle", "type": "tuning"}
    text = json.dumps({**conf, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}})
    cluster.node.run("mkdir", "-p", directory)
    cluster.node.run("tee", f"{directory}/sysctltwiddle.conf", stdin=text)
    try:
        cluster.apply(pod(name))
        cluster.wait_ready(name)
        yield cluster.exec(name, "sysctl", "-n", "net.ipv4.conf.eth0.arp_filter").strip()
        cluster.delete(name)
    finally:
        cluster.node.run("rm", "-r", directory)


def incomplete(cluster: Cluster, names: Sequence[str], wanted: set[str] = TWO) -> list[str]:
    """Pods that lack an interface now, or lacked one when a container of theirs began."""
    seen, there = _seen(cluster), _links(cluster)
    return [
        f"{name}: began with {seen.get(name)}, has {there.get(name)}"
        for name in names
        if there.get(name) != wanted or not seen.get(name) or any(each != wanted for each in seen[name])
    ]


def _seen(cluster: Cluster) -> dict[str, list[set[str]]]:
    """What each container said when it began, by pod: from the kubelet's logs on the node."""
    found: dict[str, list[set[str]]] = {}
    command = "grep -s ' seen ' /var/log/pods/default_*/main/*.log; true"
    for line in cluster.node.run("sh", "-c", command).splitlines():
        path, _, said = line.partition(":")
        found.setdefault(path.split("/")[4].split("_")[1], []).append(set(said.partition(" seen ")[2].split()))
    return found


def _links(cluster: Cluster) -> dict[str, set[str]]:
    """What each pod's namespace has now, by pod."""
    held = [each for each in cluster.attachments() if each["pod"]["namespace"] == "default"]
    script = "".join(
        f"echo @{each['pod']['name']}; ip -n {each['netns'].rpartition('/')[2]} -o link\n" for each in held
    )
    found: dict[str, set[str]] = {}
    links: set[str] = set()
    for line in cluster.node.run("sh", "-c", f"{script}true").splitlines():
        if line.startswith("@"):
            links = found.setdefault(line[1:], set())
        else:
            links.add(line.split(": ")[1].partition("@")[0])
    return found
