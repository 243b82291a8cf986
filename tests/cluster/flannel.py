"""Flannel on the cluster: flanneld with VXLAN and its CNI plugin, as a DaemonSet. See flannel.yaml."""

from pathlib import Path
from typing import Final

from tests.cluster import binaries, image

MANIFEST: Final = Path(__file__).with_name("flannel.yaml")
CONF: Final = "10-flannel.conflist"
OURS: Final = "00-multus.conf"  # what ours is called beside one of CNI 0.3.1
NETWORK: Final = "cbr0"  # as the manifest calls it
LINKS: Final = ("cni0", "flannel.1")  # which it makes, and leaves
_IMAGE: Final = "localhost/flannel:1"
_IPTABLES: Final = (
    *("iptables", "libxtables12", "libmnl0", "libnftnl11", "libip4tc2", "libip6tc2", "libnfnetlink0"),
    "libnetfilter-conntrack3",
)


def build_image(target: Path, cache: Path) -> None:
    """Both programs, and the iptables that flanneld calls.

    :raises ImageError: a Debian package cannot be had.
    """
    image.build_debian(target, _IMAGE, cache, _IPTABLES, programs=binaries.flannel())
