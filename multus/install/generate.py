"""The CNI configuration that a runtime reads, made from the node's default network and the daemon's settings.

Nearly everything is left to the daemon, which puts its own keys over each request; what stands here is what the
runtime (name, version, capabilities) and the shim (where the daemon is) have to know. The same input gives the same
bytes. Pure.
"""

from typing import Any, Final

import msgspec

from multus.cni import document
from multus.cni.conf import NetworkConf, parse_conf
from multus.cni.document import Document, DocumentError
from multus.cni.network import OUR_PLUGINS, ConfError
from multus.cni.versions import SUPPORTED, at_least
from multus.install.errors import InstallError
from multus.settings import DaemonSettings

NETWORK_NAME: Final = "multus-cni-network"
OUR_PREFIX: Final = "00-multus"
SINGLE, LIST = f"{OUR_PREFIX}.conf", f"{OUR_PREFIX}.conflist"
CONF_SUFFIXES: Final = (".conf", ".conflist")

# Keys of the daemon's file that upstream's generators write, too, so that either daemon can serve what the other made.
_PASSED: Final = (
    *("namespaceIsolation", "globalNamespaces", "logToStderr", "logLevel", "logFile", "logOptions", "binDir"),
    *("confDir", "readinessindicatorfile", "auxiliaryCNIChainName"),
)
_MAX_SOCKET_DIR: Final = 95  # what the shim takes: with /multus.sock it has to fit into a sockaddr_un
_UNKNOWN_NETWORK_VERSION: Final = "1.0.0"  # of a network that only the cluster knows


class Master(msgspec.Struct, frozen=True, kw_only=True):
    """The node's default network: the value for clusterNetwork, and its configuration.

    `network` is "" when the settings' own delegates are the default network; `conf` is None for one that only the
    cluster knows (a NetworkAttachmentDefinition).
    """

    network: str = ""
    conf: NetworkConf | None = None


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration: the name of its file and its content."""

    name: str
    data: bytes


def generate(settings: DaemonSettings, master: Master) -> Generated:
    """The configuration for this default network: a list from CNI 1.0.0 on, which knows no other form.

    :raises InstallError: versions that do not go together, or no name to take over; in upstream's words.
    """
    version = _version(settings, master.conf)
    plugin: dict[str, Any] = {"type": _type(settings)}
    if capabilities := _capabilities(settings, master.conf):
        plugin["capabilities"] = capabilities
    if master.network:
        plugin["clusterNetwork"] = master.network
    else:
        plugin["delegates"] = [msgspec.Raw(delegate) for delegate in settings.delegates]
    if socket_dir := _socket_dir(settings):
        plugin["daemonSocketDir"] = socket_dir
    plugin["cniDir"] = settings.cni_dir
    given = dict(settings.overlay)
    plugin |= {key: msgspec.Raw(given[key]) for key in _PASSED if key in given}
    top: dict[str, Any] = {"cniVersion": version, "name": _name(settings, master.conf)}
    if not at_least(version, "1.0.0"):
        return Generated(name=SINGLE, data=_encode(top | plugin))
    if versions := _versions(settings, master.conf):
        # A runtime that does not know the list takes the one version, so that is the one that most know.
        top |= {"cniVersion": versions[0], "cniVersions": versions}
    return Generated(name=LIST, data=_encode(top | {"plugins": [plugin]}))


def generated_here(data: bytes) -> bool:
    """Whether this module (any release of it) made the configuration. Upstream's name no cniDir beside the network."""
    try:
        conf = parse_conf(data, where="")
    except ConfError:
        return False
    body = conf.plugins[0].body if conf.plugins else {}
    network = "clusterNetwork" in body or "delegates" in body
    return len(conf.plugins) == 1 and calls_us(conf) and "cniDir" in body and network


def calls_us(conf: NetworkConf) -> bool:
    """Whether the configuration has this program called: as the default network it would call itself for ever."""
    return any(plugin.type in OUR_PLUGINS for plugin in conf.plugins)


def delegate_conf(data: bytes) -> NetworkConf:
    """The first of the settings' delegates, which is the default network. Raises ConfError."""
    return parse_conf(data, where='item 0 of "delegates"')


def _type(settings: DaemonSettings) -> str:
    """The shim's name. Another one would not be known again as ours, by an uninstallation for instance."""
    if settings.type and settings.type not in OUR_PLUGINS:
        raise InstallError(
            f'"type" is {settings.type!r:.80}', hint=f"the shim is installed as {' or '.join(sorted(OUR_PLUGINS))}"
        )
    return settings.type or "multus"


def _version(settings: DaemonSettings, conf: NetworkConf | None) -> str:
    """The version that the runtime speaks with us. CHECK came with 0.4.0: an older network could not answer it."""
    wanted = settings.cni_version
    if wanted and wanted not in SUPPORTED:
        raise InstallError(
            f"couldn't get top level cni version: {wanted!r:.40} is not one", hint=f"one of {', '.join(SUPPORTED)}"
        )
    if settings.force_cni_version:
        if not wanted:
            raise InstallError("forceCNIVersion without cniVersion", hint='say which: "cniVersion": "1.0.0"')
        return wanted
    if conf is None:
        return wanted or _UNKNOWN_NETWORK_VERSION
    own = conf.cni_version
    if not own and (not wanted or at_least(wanted, "0.4.0")):
        raise InstallError("couldn't get cni version of delegate", hint='give the default network a "cniVersion"')
    if not wanted and own not in SUPPORTED:
        raise InstallError(f"delegate cni version is {own}", hint=f"this multus knows {', '.join(SUPPORTED)}")
    if wanted and at_least(wanted, "0.4.0") and not at_least(own, "0.4.0"):
        raise InstallError(
            f"delegate cni version is {own} while top level cni version is {wanted}",
            hint="leave \"cniVersion\" out of the daemon's configuration to use the default network's own, or set "
            '"forceCNIVersion"',
        )
    return wanted or own


def _versions(settings: DaemonSettings, conf: NetworkConf | None) -> list[str]:
    """The versions that the default network offers and we can serve as a list, oldest first; [] when it has no list."""
    if settings.cni_version or conf is None or not conf.cni_versions:
        return []
    offered = {conf.cni_version, *conf.cni_versions}
    return [version for version in SUPPORTED if version in offered and at_least(version, "1.0.0")]


def _name(settings: DaemonSettings, conf: NetworkConf | None) -> str:
    if not settings.override_network_name:
        return NETWORK_NAME
    if conf is None or not conf.name:
        raise InstallError(
            "could not override the network name: the primary CNI Configuration does not feature the network name",
            hint='give the default network a "name", or remove "overrideNetworkName"',
        )
    return conf.name


def _capabilities(settings: DaemonSettings, conf: NetworkConf | None) -> dict[str, bool]:
    """Whatever one of the network's plugins can do, and the settings' own; only what is true."""
    granted = [settings.capabilities, *(plugin.capabilities for plugin in (conf.plugins if conf else ()))]
    return dict.fromkeys(sorted({name for each in granted for name, on in each.items() if on}), True)


def _socket_dir(settings: DaemonSettings) -> str:
    """Where the shim, on the host, finds the daemon; "" leaves it at its default.

    In a pod, as in upstream's manifest (socketDir /host/run/multus/), the daemon's socketDir is no path of the host.
    """
    in_pod = settings.chroot_dir or settings.socket_dir.startswith("/host/")
    chosen = settings.daemon_socket_dir or ("" if in_pod else settings.socket_dir)
    if chosen and (not chosen.startswith("/") or len(chosen.encode(errors="replace")) > _MAX_SOCKET_DIR):
        raise InstallError(
            f"the shim could not use daemonSocketDir {chosen!r:.120}",
            hint=f"it must be an absolute path of at most {_MAX_SOCKET_DIR} bytes",
        )
    return chosen


def _encode(conf: Document | dict[str, Any]) -> bytes:
    try:
        return msgspec.json.format(document.encode(conf), indent=4) + b"\n"
    except DocumentError as error:
        raise InstallError(f"the CNI configuration {error}", hint="check the names of files and keys") from None
