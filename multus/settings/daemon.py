"""The daemon's file: upstream's daemon-config.json and our keys beside it.

Whatever of it a CNI configuration may hold is put over every request's, key by key.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from multus.cni.document import fold
from multus.files import FileError, read_small
from multus.settings.keys import (
    Key,
    SettingsError,
    boolean,
    integer,
    nearest,
    nested,
    objects,
    one_of,
    port,
    positive,
    read_object,
    seconds,
    strings,
    table,
    text,
    texts,
)
from multus.settings.netconf import LOG_OPTIONS, MISNOMERS, NET_CONF_KEYS, LogOptions, NetConf, overlaid

DEFAULT_CONFIG: Final = "/etc/cni/net.d/multus.d/daemon-config.json"
DEFAULT_SOCKET_DIR: Final = "/run/multus/"
DEFAULT_CNI_DIR: Final = "/var/lib/cni/multus"
_MAX_FILE = 1024 * 1024


class NodeCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """perNodeCertificate, read so that it can be answered; this program does not request certificates."""

    enabled: bool = False
    bootstrap_kubeconfig: str = ""
    cert_dir: str = ""
    cert_duration: str = "10m"


class DaemonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's settings; times in seconds, directories as the daemon sees them.

    `overlay` is what goes over each request's CNI configuration: (key, JSON value).
    `warnings` is what the operator should be told, ready to log.
    """

    # upstream: server
    chroot_dir: str = ""
    socket_dir: str = DEFAULT_SOCKET_DIR
    log_file: str = ""
    log_level: str = ""
    log_to_stderr: bool = False
    log_options: LogOptions = LogOptions()
    per_node_certificate: NodeCertificate = NodeCertificate()
    connection_limit: int | None = None
    metrics_port: int | None = None
    enable_pprof: bool = False
    # upstream: the generator of the CNI configuration
    name: str = ""
    type: str = ""
    cni_version: str = ""
    cni_config_dir: str = "/etc/cni/net.d"
    multus_config_file: str = "auto"
    multus_autoconfig_dir: str = "/etc/cni/net.d"
    multus_master_cni: str = ""
    force_cni_version: bool = False
    override_network_name: bool = False
    daemon_socket_dir: str = ""
    # shared with the CNI configuration
    kubeconfig: str = ""
    cni_dir: str = DEFAULT_CNI_DIR
    bin_dir: str = "/opt/cni/bin"
    conf_dir: str = "/etc/cni/multus/net.d"
    cluster_network: str = ""
    delegates: tuple[bytes, ...] = ()
    default_networks: tuple[str, ...] = ()
    capabilities: dict[str, bool] = {}
    readiness_indicator_file: str = ""
    namespace_isolation: bool = False
    global_namespaces: tuple[str, ...] = ("default",)
    system_namespaces: tuple[str, ...] = ("kube-system",)
    multus_namespace: str = "kube-system"
    auxiliary_cni_chain_name: str = ""
    retry_delete_on_error: bool = False
    # ours
    manifests: str = ""
    node_name: str = ""
    attach_order: Literal["concurrent", "sequential"] = "concurrent"
    max_concurrent_delegates: int = 8
    native_delegates: tuple[str, ...] | None = None
    delegate_timeout: float = 60.0
    add_timeout: float = 110.0  # the kubelet stops listening after 120 by default: answer before
    events: Literal["failures", "all"] = "failures"
    log_format: Literal["text", "json"] = "text"
    kubelet_dir: str = "/var/lib/kubelet"
    device_info_dir: str = "/var/run/k8s.cni.cncf.io/devinfo"
    device_config: str = ""
    policies: str = ""
    sriov_policies: tuple[bytes, ...] = ()
    node_labels: dict[str, str] = {}
    metrics_bind: str = "127.0.0.1"  # upstream: every address, without asking who it is

    overlay: tuple[tuple[str, bytes], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def auto(self) -> bool:
        """Whether the CNI configuration is generated from the node's default one."""
        return self.multus_config_file == "auto"

    @property
    def socket_path(self) -> Path:
        """Where the daemon listens."""
        return Path(self.socket_dir) / "multus.sock"


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload brings, by JSON key: what takes effect at once, and what only a restart can change."""

    live: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def _connection_limit(value: bytes, where: str) -> int:
    limit = integer(value, where)
    if limit <= 0:
        hint = f"set {where} to 1 or more, or leave it out for no limit of connections"
        raise SettingsError(f"connection limit must be greater than 0, got {limit}", hint=hint)
    return limit


_CERTIFICATE: Final = table(
    Key("enabled", "enabled", boolean),
    Key("bootstrapKubeconfig", "bootstrap_kubeconfig", text),
    Key("certDir", "cert_dir", text),
    Key("certDuration", "cert_duration", text),
)
_OWN_KEYS: Final = table(
    Key("chrootDir", "chroot_dir", text, live=False),
    Key("socketDir", "socket_dir", text, live=False),
    Key("perNodeCertificate", "per_node_certificate", nested(NodeCertificate, _CERTIFICATE)),
    Key("connectionLimit", "connection_limit", _connection_limit, live=False),
    Key("metricsPort", "metrics_port", port, live=False),
    Key("enablePprof", "enable_pprof", boolean),
    Key("cniConfigDir", "cni_config_dir", text, live=False),
    Key("multusConfigFile", "multus_config_file", text, live=False),
    Key("multusAutoconfigDir", "multus_autoconfig_dir", text, live=False),
    Key("multusMasterCNI", "multus_master_cni", text, live=False),
    Key("forceCNIVersion", "force_cni_version", boolean, live=False),
    Key("overrideNetworkName", "override_network_name", boolean, live=False),
    Key("daemonSocketDir", "daemon_socket_dir", text, live=False),
    Key("manifests", "manifests", text, live=False),
    Key("nodeName", "node_name", text, live=False),
    Key("attachOrder", "attach_order", one_of("concurrent", "sequential")),
    Key("maxConcurrentDelegates", "max_concurrent_delegates", positive),
    Key("nativeDelegates", "native_delegates", texts, live=False),
    Key("delegateTimeout", "delegate_timeout", seconds),
    Key("addTimeout", "add_timeout", seconds),
    Key("events", "events", one_of("failures", "all")),
    Key("logFormat", "log_format", one_of("text", "json")),
    Key("kubeletDir", "kubelet_dir", text, live=False),
    Key("deviceInfoDir", "device_info_dir", text, live=False),
    Key("deviceConfig", "device_config", text, live=False),
    Key("policies", "policies", text, live=False),
    Key("sriovPolicies", "sriov_policies", objects, live=False),
    Key("nodeLabels", "node_labels", strings, live=False),
    Key("metricsBind", "metrics_bind", text, live=False),
)
DAEMON_KEYS: Final[Mapping[str, Key]] = {**NET_CONF_KEYS, **_OWN_KEYS}

# Of a request, never of a node: what a daemon's file says of them would be given to every pod.
_PER_REQUEST: Final = frozenset({"runtimeConfig", "prevResult"})
# Go takes an empty string for an absent key.
_EMPTY_IS_ABSENT: Final = (
    *("socket_dir", "cni_config_dir", "multus_config_file", "multus_autoconfig_dir", "kubelet_dir", "device_info_dir"),
    "metrics_bind",
)
_NESTED: Final = (("logOptions", LOG_OPTIONS), ("perNodeCertificate", _CERTIFICATE))


def load_daemon(path: Path, *, node_name: str = "", cores: int | None = None) -> DaemonSettings:
    """Read the daemon's file.

    :param node_name: MULTUS_NODE_NAME of the environment, for a file without nodeName.
    :param cores: processors to count on; asked of the kernel when None.
    :raises SettingsError: unreadable, not JSON, a key of the wrong type or out of range.
    """
    try:
        data = read_small(path, limit=_MAX_FILE)
    except FileError as error:
        raise SettingsError(f"cannot read the daemon's configuration: {error.message}", hint=error.hint) from None
    return parse_daemon(data, where=str(path), node_name=node_name, cores=cores)


def parse_daemon(data: bytes, *, where: str, node_name: str = "", cores: int | None = None) -> DaemonSettings:
    """The settings in `data`; see `load_daemon`."""
    found = read_object(data, DAEMON_KEYS, where)
    values: dict[str, Any] = {name: value for name, value in found.values.items() if name in _FIELDS}
    for field in _EMPTY_IS_ABSENT:
        if values.get(field) == "":
            del values[field]
    values["node_name"] = values.get("node_name") or node_name
    values.setdefault("max_concurrent_delegates", _concurrency(cores))
    values.setdefault("multus_autoconfig_dir", values.get("cni_config_dir", "/etc/cni/net.d"))
    overlay = tuple(
        (name, value) for name, value in found.raw.items() if fold(name) in NET_CONF_KEYS and name not in _PER_REQUEST
    )
    settings = DaemonSettings(**values, overlay=overlay)
    unknown = _unknown(found.unknown, DAEMON_KEYS, where)
    for name, keys in _NESTED:
        inside = read_object(found.raw.get(name, b"{}"), keys, where)
        unknown += _unknown(inside.unknown, keys, f"{name} in {where}")
    warnings = (*unknown, *_notices(settings, found.raw, where))
    return msgspec.structs.replace(settings, warnings=warnings)


def net_conf(settings: DaemonSettings, conf: bytes) -> NetConf:
    """The CNI configuration of one request with the daemon's keys over it; errors as in `netconf.overlaid`."""
    return overlaid(settings.overlay, conf, drop_readiness=settings.auto)


def changes(old: DaemonSettings, new: DaemonSettings) -> Changes:
    """Which keys a reload changes, in the order of the table.

    One that is written now, but as its default, is a change as well: from now on it goes over each request's.
    """
    live: list[str] = []
    restart: list[str] = []
    before, after = dict(old.overlay), dict(new.overlay)
    for key in DAEMON_KEYS.values():
        if key.field in _FIELDS and getattr(old, key.field) != getattr(new, key.field):
            (live if key.live else restart).append(key.name)
        elif (key.name in before) != (key.name in after):
            live.append(key.name)
    return Changes(live=tuple(live), restart=tuple(restart))


_FIELDS: Final = frozenset(DaemonSettings.__struct_fields__)


def _concurrency(cores: int | None) -> int:
    """Eight delegates a core: they mostly wait for the kernel, above all at DEL, where two a core gave half as many a
    second; not without end, for one may weigh 55 MB (cilium-cni)."""
    count = cores if cores is not None else len(os.sched_getaffinity(0))
    return min(8 * count, 32)


def _unknown(names: tuple[str, ...], keys: Mapping[str, Key], where: str) -> list[str]:
    warnings = []
    for name in names:
        meant = MISNOMERS.get(fold(name), "") if keys is DAEMON_KEYS else ""
        meant = meant or nearest(name, (key.name for key in keys.values()))
        question = f': did you mean "{meant}"?' if meant else ""
        warnings.append(f'unknown key "{name}" in {where} is ignored{question}')
    return warnings


def _notices(settings: DaemonSettings, raw: Mapping[str, bytes], where: str) -> list[str]:
    notices = []
    if settings.per_node_certificate.enabled:
        notices.append(
            f"perNodeCertificate in {where} is not used: this version talks to the API server with its service account "
            "or with kubeconfig; give the daemon one of them and remove the key"
        )
    if settings.enable_pprof:
        notices.append(f"enablePprof in {where} is not used: it is a facility of Go programs")
    notices.extend(
        f"{name} in {where} is not used: it belongs to one request, not to the node"
        for name in sorted(_PER_REQUEST & raw.keys())
    )
    return notices
