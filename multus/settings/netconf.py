"""What the CNI configuration of one request says, under the daemon's own: every key that upstream Multus reads."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from multus.cni.document import fold
from multus.cni.errors import CNIError, Code
from multus.settings.keys import (
    Key,
    Read,
    SettingsError,
    boolean,
    csv,
    flags,
    members,
    natural,
    nearest,
    nested,
    objects,
    raw_object,
    read_object,
    table,
    text,
    texts,
    wrong_type,
)

WHERE: Final = "the CNI configuration"

_CACHED_CONFS = 64
_CACHED_SIZE = 64 * 1024

_RUNTIME_KINDS: Final[Mapping[str, tuple[str, bytes]]] = {
    "portMappings": ("a list", b"["),
    "bandwidth": ("an object", b"{"),
    "ips": ("a list", b"["),
    "mac": ("a string", b'"'),
    "infinibandGUID": ("a string", b'"'),
    "deviceID": ("a string", b'"'),
    "CNIDeviceInfoFile": ("a string", b'"'),
}
_RUNTIME_NAMES: Final = {fold(name): name for name in _RUNTIME_KINDS}

# Keys that the CNI specification, the shim or an older upstream gives a meaning: not ours to read, nor to warn about.
_NOT_OURS: Final = frozenset(
    fold(name)
    for name in (
        *("args", "ipam", "dns", "ipMasq", "plugins", "disableCheck", "disableGC", "cniVersions"),
        *("loadOnlyInlinedPlugins", "daemonSocketDir", "defaultnetworkfile", "defaultnetworkwaitseconds"),
    )
)
# Names that upstream's own tools and documents use for a key that nobody reads.
MISNOMERS: Final = {"cniconf": "confDir", "allowtrydeleteonerr": "retryDeleteOnError"}
_NEAR_MISS = 0.85


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Rotation of logFile: days to keep, size in MB at which to rotate, how many old files, gzip them."""

    max_age: int = 5
    max_size: int = 100
    max_backups: int = 5
    compress: bool = True


LOG_OPTIONS: Final = table(
    Key("maxAge", "max_age", natural),
    Key("maxSize", "max_size", natural),
    Key("maxBackups", "max_backups", natural),
    Key("compress", "compress", boolean),
)


class NetConf(msgspec.Struct, frozen=True, kw_only=True):
    """One request's configuration. JSON keys in upstream's documents; here in Python's names.

    `delegates` and `prev_result` are JSON as it came; `runtime_config` maps capability names to JSON.
    `global_namespaces` is ("default",) unless given; once given, "default" counts only when it is listed.
    `answer_version` is the incoming configuration's own cniVersion, which the result has to be in, whatever
    the daemon's settings put over `cni_version`.
    """

    name: str = ""
    type: str = ""
    cni_version: str = ""
    answer_version: str = ""
    capabilities: dict[str, bool] = {}
    conf_dir: str = "/etc/cni/multus/net.d"
    cni_dir: str = "/var/lib/cni/multus"
    bin_dir: str = "/opt/cni/bin"
    delegates: tuple[bytes, ...] = ()
    cluster_network: str = ""
    default_networks: tuple[str, ...] = ()
    kubeconfig: str = ""
    log_file: str = ""
    log_level: str = ""
    log_to_stderr: bool = True
    log_options: LogOptions = LogOptions()
    runtime_config: dict[str, msgspec.Raw] = {}
    readiness_indicator_file: str = ""
    namespace_isolation: bool = False
    global_namespaces: tuple[str, ...] = ("default",)
    system_namespaces: tuple[str, ...] = ("kube-system",)
    multus_namespace: str = "kube-system"
    auxiliary_cni_chain_name: str = ""
    retry_delete_on_error: bool = False
    prev_result: bytes | None = None
    warnings: tuple[str, ...] = ()


def _runtime_config(value: bytes, where: str) -> dict[str, msgspec.Raw]:
    """Every capability argument, those that Multus itself knows checked for their JSON type."""
    found: dict[str, msgspec.Raw] = {}
    for given, argument in members(value, where).items():
        name = _RUNTIME_NAMES.get(fold(given), given)
        if argument == b"null":
            continue
        expected, first = _RUNTIME_KINDS.get(name, ("", b""))
        if not argument.startswith(first):
            raise wrong_type(f"{name} of {where}", expected, argument)
        found[name] = msgspec.Raw(argument)
    return found


def _or_default(read: Read, default: object) -> Read:
    """Upstream takes an empty value for an absent one."""
    return lambda value, where: read(value, where) or default


def _global_namespaces(value: bytes, where: str) -> tuple[str, ...]:
    return tuple(name for name in csv(value, where) if name) or ("default",)


NET_CONF_KEYS: Final = table(
    Key("name", "name", text),
    Key("type", "type", text),
    Key("cniVersion", "cni_version", text),
    Key("capabilities", "capabilities", flags),
    Key("confDir", "conf_dir", _or_default(text, "/etc/cni/multus/net.d")),
    Key("cniDir", "cni_dir", _or_default(text, "/var/lib/cni/multus"), live=False),
    Key("binDir", "bin_dir", _or_default(text, "/opt/cni/bin")),
    Key("delegates", "delegates", objects),
    Key("clusterNetwork", "cluster_network", text),
    Key("defaultNetworks", "default_networks", texts),
    Key("kubeconfig", "kubeconfig", text, live=False),
    Key("logFile", "log_file", text),
    Key("logLevel", "log_level", text),
    Key("logToStderr", "log_to_stderr", boolean),
    Key("logOptions", "log_options", nested(LogOptions, LOG_OPTIONS)),
    Key("runtimeConfig", "runtime_config", _runtime_config),
    Key("readinessindicatorfile", "readiness_indicator_file", text),
    Key("namespaceIsolation", "namespace_isolation", boolean),
    Key("globalNamespaces", "global_namespaces", _global_namespaces),
    Key("systemNamespaces", "system_namespaces", _or_default(texts, ("kube-system",))),
    Key("multusNamespace", "multus_namespace", _or_default(text, "kube-system")),
    Key("auxiliaryCNIChainName", "auxiliary_cni_chain_name", text),
    Key("retryDeleteOnError", "retry_delete_on_error", boolean),
    Key("prevResult", "prev_result", raw_object),
)


def overlaid(overlay: tuple[tuple[str, bytes], ...], conf: bytes, *, drop_readiness: bool) -> NetConf:
    """`conf` with the daemon's keys put over it; small confs are remembered, as a node sees the same few all day.

    :param overlay: (key as upstream spells it, JSON value) of the daemon's file.
    :raises SettingsError: a key of the wrong type, or neither clusterNetwork nor delegates.
    :raises CNIError: not JSON (6), or a prevResult that cannot be read.
    """
    read = _remembered if len(conf) <= _CACHED_SIZE else _read
    return read(overlay, conf, drop_readiness)


def _read(overlay: tuple[tuple[str, bytes], ...], conf: bytes, drop_readiness: bool) -> NetConf:
    try:
        given = members(conf, WHERE)
    except SettingsError as error:
        message = f"LoadNetConf: failed to load netconf: {error.message}"
        raise CNIError(Code.DECODING_FAILURE, message, hint="the runtime must send one JSON object") from None
    # The runtime's, and nobody else's: it is what its prevResult is in, and what its answer has to be in.
    own_version = read_object(conf, {"cniversion": NET_CONF_KEYS["cniversion"]}, WHERE).values.get("cni_version", "")
    ours = {fold(name) for name, _ in overlay}
    merged = {name: msgspec.Raw(value) for name, value in given.items() if fold(name) not in ours}
    merged |= {name: msgspec.Raw(value) for name, value in overlay}
    found = read_object(msgspec.json.encode(merged), NET_CONF_KEYS, WHERE)
    values = found.values
    if drop_readiness:
        values.pop("readiness_indicator_file", None)
    if not values.get("cluster_network") and not values.get("delegates"):
        raise SettingsError(
            "LoadNetConf: at least one delegate/clusterNetwork must be specified",
            hint='give "clusterNetwork" (a NAD, a conf name, or a path) or "delegates" in the CNI configuration '
            "or in the daemon's file",
        )
    if "prev_result" in values:
        _check_previous(values["prev_result"], own_version)
    return NetConf(**values, answer_version=own_version, warnings=_near_misses(found.unknown))


_remembered = lru_cache(maxsize=_CACHED_CONFS)(_read)


def _check_previous(data: bytes, version: str) -> None:
    from multus.cni.result import parse_result

    try:
        parse_result(data, where="prevResult", version=version)
    except CNIError as error:
        message = f"LoadNetConf: could not parse prevResult: {error.message}"
        raise CNIError(error.code, message, error.details, hint=error.hint) from None


def _near_misses(unknown: tuple[str, ...]) -> tuple[str, ...]:
    """Unknown keys are allowed here, so only those that look like a slip of ours are worth a word."""
    warnings = []
    for name in unknown:
        folded = fold(name)
        if folded in _NOT_OURS:
            continue
        meant = MISNOMERS.get(folded) or nearest(name, (key.name for key in NET_CONF_KEYS.values()), cutoff=_NEAR_MISS)
        if meant:
            warnings.append(f'unknown key "{name}" in {WHERE} is ignored: did you mean "{meant}"?')
    return tuple(warnings)
