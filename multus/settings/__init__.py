"""Settings: the daemon's file, and the CNI configuration that each request brings."""

from multus.settings.daemon import (
    DEFAULT_CNI_DIR,
    DEFAULT_CONFIG,
    DEFAULT_SOCKET_DIR,
    Changes,
    DaemonSettings,
    NodeCertificate,
    changes,
    load_daemon,
    net_conf,
    parse_daemon,
)
from multus.settings.keys import SettingsError
from multus.settings.netconf import LogOptions, NetConf

__all__ = [
    "DEFAULT_CNI_DIR",
    "DEFAULT_CONFIG",
    "DEFAULT_SOCKET_DIR",
    "Changes",
    "DaemonSettings",
    "LogOptions",
    "NetConf",
    "NodeCertificate",
    "SettingsError",
    "changes",
    "load_daemon",
    "net_conf",
    "parse_daemon",
]
