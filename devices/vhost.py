"""The two nodes that `needVhostNet` gives a pod beside its VF, and whether this host has them.

As with upstream's device plugin, a pod gets both or neither: a container that is to have a node which the host has not
does not start at all, and the kubelet's word for that names neither the pool nor the module.
"""

from collections.abc import Sequence
from typing import Final

from devices.linux.sysfs import Sysfs

_NODES: Final = (("vhost-net", "vhost-net", "vhost_net"), ("net/tun", "tun", "tun"))
"""Below /dev, the kernel's name of the device while it has a driver, and the module."""


def missing(sysfs: Sysfs) -> tuple[str, ...]:
    """Paths of the nodes that are not there. Blocks.

    A container's own /dev is as the host's was when the container was made; sysfs has what came since.
    """
    misc = sysfs.root / "class/misc"
    return tuple(
        f"/dev/{path}" for path, name, _ in _NODES if not (sysfs.dev / path).exists() and not (misc / name).exists()
    )


def advice(absent: Sequence[str]) -> str:
    """What would make them."""
    modules = [module for path, _, module in _NODES if f"/dev/{path}" in absent]
    return f"load {' and '.join(modules)}: `modprobe -a {' '.join(modules)}`, and at boot by /etc/modules-load.d"
