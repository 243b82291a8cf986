"""Network configurations: changing one for an attachment, and what each of its plugins gets on stdin.

Source: CNI specification 1.1, section 3 ("Deriving runtimeConfig" and around it), and libcni. Nothing here changes a
value that it was not told to change: numbers, order and unknown keys reach the plugin as the operator wrote them.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from multus.cni import document
from multus.cni.document import Document, DocumentError
from multus.cni.network import (
    ConfError,
    NetworkConf,
    Plugin,
    check_name,
    check_version,
    is_plugin_type,
    parse_conf,
    parse_plugin,
    refuse_recursion,
)
from multus.memo import ByIdentity

__all__ = [
    "ConfError",
    "NetworkConf",
    "Plugin",
    "encode_conf",
    "ipam_type",
    "masters",
    "parse_conf",
    "parse_plugin",
    "plugin_conf",
    "refuse_recursion",
    "with_chained",
    "with_cni_args",
    "with_cni_version",
    "with_device",
    "with_name",
]

T = TypeVar("T")


@ByIdentity
def encode_conf(conf: NetworkConf) -> bytes:
    """The configuration as JSON: parse_conf gives an equal one back."""
    if not conf.is_list:
        return document.encode(conf.plugins[0].body)
    top: dict[str, object] = {}
    if conf.cni_version:
        top["cniVersion"] = conf.cni_version
    if conf.cni_versions:
        top["cniVersions"] = conf.cni_versions
    if conf.name:
        top["name"] = conf.name
    for key, on in (
        ("disableCheck", conf.disable_check),
        ("disableGC", conf.disable_gc),
        ("loadOnlyInlinedPlugins", conf.load_only_inlined_plugins),
    ):
        if on:
            top[key] = True
    if conf.plugins:
        top["plugins"] = [plugin.body for plugin in conf.plugins]
    return document.encode(top)


def with_name(conf: NetworkConf, name: str) -> NetworkConf:
    """The same network under this name. Raises ConfError for one that plugins could not make a file name of."""
    check_name(name, "network name")
    return msgspec.structs.replace(conf, name=name, plugins=_in_single(conf, {"name": name}))


def with_cni_version(conf: NetworkConf, version: str) -> NetworkConf:
    """The same network in exactly this version; its list of versions goes. Raises ConfError for no version at all."""
    check_version(version, "cniVersion")
    plugins = _in_single(conf, {"cniVersion": version}, drop="cniVersions")
    return msgspec.structs.replace(conf, cni_version=version, cni_versions=(), plugins=plugins)


def with_device(conf: NetworkConf, device_id: str) -> NetworkConf:
    """Tells every plugin which device it is given, under both keys that plugins read: deviceID and pciBusID."""
    device = {"deviceID": device_id, "pciBusID": device_id}
    return msgspec.structs.replace(conf, plugins=tuple(_with(plugin, device) for plugin in conf.plugins))


def with_cni_args(conf: NetworkConf, args: Mapping[str, object]) -> NetworkConf:
    """Merges `args` over args.cni of every plugin: new values replace, other keys stay. Raises ConfError."""
    if not args:
        return conf
    plugins = tuple(_with_args(plugin, args, _where(conf, plugin)) for plugin in conf.plugins)
    return msgspec.structs.replace(conf, plugins=plugins)


def with_chained(conf: NetworkConf, plugins: Sequence[Plugin]) -> NetworkConf:
    """Appends plugins of the network's directory, unless the configuration forbids it. The result is a list."""
    if not plugins or conf.load_only_inlined_plugins:
        return conf
    return msgspec.structs.replace(conf, plugins=(*conf.plugins, *plugins), is_list=True)


def plugin_conf(
    conf: NetworkConf,
    plugin: Plugin,
    *,
    prev_result: bytes | None,
    runtime: Mapping[str, object],
    extra: Mapping[str, object] = {},
) -> bytes:
    """What one plugin reads on stdin. Raises ConfError when a value cannot be written as JSON.

    `runtime` holds arguments by capability: a plugin gets those that it declares true, over its own runtimeConfig.
    `prev_result` is JSON in the network's version. `extra` are further keys, such as cni.dev/valid-attachments.
    """
    granted = {key: item for key, item in runtime.items() if plugin.capabilities.get(key) is True}
    fresh: dict[str, object] = {"name": conf.name, "cniVersion": conf.cni_version}
    try:
        if prev_result is None and not granted and not extra:
            plain = next((data for each, data in _plain_confs(conf) if each is plugin), None)
            if plain is not None:
                return plain
        if granted:
            fresh["runtimeConfig"] = {**_own_runtime(plugin), **granted}
        if prev_result is not None:
            fresh["prevResult"] = msgspec.Raw(prev_result)
        return document.encode(_with(plugin, {**fresh, **extra}).body)
    except DocumentError as error:
        raise ConfError(f"{_where(conf, plugin)}: {error}") from None


@ByIdentity
def _plain_confs(conf: NetworkConf) -> tuple[tuple[Plugin, bytes], ...]:
    """What each plugin reads when an attachment adds nothing: the same for each pod."""
    fresh = {"name": conf.name, "cniVersion": conf.cni_version}
    return tuple((plugin, document.encode(_with(plugin, fresh).body)) for plugin in conf.plugins)


def ipam_type(plugin: Plugin) -> str:
    """The address plugin that this one delegates to, "" when there is none, or none that could be a program's name."""
    try:
        kind = _lenient(_object(plugin.body, "ipam"), "type", str) or ""
    except DocumentError:
        return ""
    return kind if kind and is_plugin_type(kind) else ""


@ByIdentity
def masters(conf: NetworkConf) -> tuple[str, ...]:
    """Interfaces that must exist before this network is attached, for whoever orders attachments; each once.

    That is "master" (macvlan, ipvlan, vlan, ipoib), "link", and the names in "links" (bond). "linkInContainer" is not
    asked: without it the name is the host's, and to wait for an attachment that shares it by chance costs only time.
    Not here: "device" (host-device takes one from the host, which no attachment makes), "bridge" (the plugin makes it).
    """
    names: dict[str, None] = {}
    for plugin in conf.plugins:
        found = [_lenient(plugin.body, key, str) for key in ("master", "link")]
        for link in _lenient(plugin.body, "links", list[msgspec.Raw]) or ():
            try:
                found.append(_lenient(document.decode(bytes(link)), "name", str))
            except DocumentError:
                continue
        names.update((name, None) for name in found if name)
    return tuple(names)


def _lenient(body: Document, key: str, kind: type[T]) -> T | None:
    """A plugin's own key: to complain of its value is the plugin's business."""
    raw = document.member(body, key)
    try:
        return None if raw is None else document.value(raw, kind)
    except DocumentError:
        return None


def _where(conf: NetworkConf, plugin: Plugin) -> str:
    return f'plugin "{plugin.type}" of network "{conf.name}"'


def _with(plugin: Plugin, fresh: Mapping[str, object]) -> Plugin:
    body = plugin.body
    for key, item in fresh.items():
        body = document.with_member(body, key, item)
    return msgspec.structs.replace(plugin, body=body)


def _in_single(conf: NetworkConf, fresh: Mapping[str, object], drop: str = "") -> tuple[Plugin, ...]:
    """In the single form, the plugin's own object is the network's, too."""
    if conf.is_list:
        return conf.plugins
    plugin = _with(conf.plugins[0], fresh)
    if drop:
        plugin = msgspec.structs.replace(plugin, body=document.without_member(plugin.body, drop))
    return (plugin,)


def _with_args(plugin: Plugin, args: Mapping[str, object], where: str) -> Plugin:
    try:
        given = _object(plugin.body, "args")
        merged = {**_object(given, "cni"), **args}
        return _with(plugin, {"args": document.with_member(given, "cni", merged)})
    except DocumentError as error:
        raise ConfError(f'{where}: "args" cannot take cni-args: {error}') from None


def _object(body: Document, key: str) -> Document:
    raw = document.member(body, key)
    return document.decode(bytes(raw)) if raw is not None else {}


def _own_runtime(plugin: Plugin) -> Document:
    try:
        return _object(plugin.body, "runtimeConfig")
    except DocumentError:
        return {}  # the key is reserved for us, and libcni replaces whatever is there
