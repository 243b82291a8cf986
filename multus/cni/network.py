"""Network configurations, read: what an operator wrote, checked so that nothing later has to doubt it.

Source: CNI specification 1.1, section 1; libcni where the specification is silent. A single plugin's configuration (the
form of before lists) is a list of one here, so that nothing else has to tell the two apart. The rest of the program
imports these names from `multus.cni.conf`.
"""

import difflib
import re
from collections.abc import Sequence
from typing import ClassVar, Final, TypeVar

import msgspec

from multus.cni import document
from multus.cni.document import Document, DocumentError
from multus.cni.versions import SUPPORTED
from multus.errors import Fault, MultusError

MAX_CONF = 4 * 1024 * 1024
MAX_PLUGINS = 64
OUR_PLUGINS = frozenset({"multus", "multus-shim"})
TUNING: Final = "tuning"
"""The plugin that gives an interface another MTU, and does not say so in its result."""

_NAME = re.compile(
    r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}"
)  # 253 as for any Kubernetes name; plugins make file names of it
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}")
_TYPE_REFUSED = re.compile(r"[/\\\x00-\x1f\x7f]")

T = TypeVar("T")


class ConfError(MultusError):
    """A network configuration that cannot be used."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin of a network. `body` is its object as given; values are untouched bytes in their order."""

    type: str
    capabilities: dict[str, bool] = {}
    body: Document


class NetworkConf(msgspec.Struct, frozen=True, kw_only=True):
    """A network: its plugins run in this order on ADD. `name` and `cni_version` are "" when absent.

    `cni_version` is the highest that the configuration and this program both know. `is_list`: which form was given.
    """

    name: str = ""
    cni_version: str = ""
    plugins: tuple[Plugin, ...]
    disable_check: bool = False
    disable_gc: bool = False
    cni_versions: tuple[str, ...] = ()
    load_only_inlined_plugins: bool = False
    is_list: bool


def parse_conf(data: bytes, *, where: str, plugins_elsewhere: bool = False) -> NetworkConf:
    """A configuration or configuration list. Raises ConfError, whatever the bytes are.

    `where` names the source in messages. `plugins_elsewhere` allows a list without "plugins": its plugins come from the
    directory beside its file (CNI 1.1); the caller adds them by with_chained and refuses a list that stays empty.
    """
    top = _document(data, where)
    listed = _field(top, "plugins", list[msgspec.Raw], where)
    single = document.member(top, "type") is not None
    only_inlined = _flag(top, "loadOnlyInlinedPlugins", where)
    if listed is not None:
        plugins = _plugins(listed, where)
    elif single:
        plugins = (_plugin(top, where),)
    elif plugins_elsewhere and not only_inlined:
        plugins = ()
    else:
        raise _untyped(top, where, only_inlined)
    name = _field(top, "name", str, where) or ""
    if name:
        check_name(name, f'{where}: "name"')
    versions = tuple(_field(top, "cniVersions", list[str], where) or ())
    return NetworkConf(
        name=name,
        cni_version=_highest(_field(top, "cniVersion", str, where) or "", versions, where),
        plugins=plugins,
        disable_check=_flag(top, "disableCheck", where),
        disable_gc=_flag(top, "disableGC", where),
        cni_versions=versions,
        load_only_inlined_plugins=only_inlined,
        is_list=listed is not None or not single,
    )


def parse_plugin(data: bytes, *, where: str) -> Plugin:
    """One plugin's configuration, as a file of a chaining directory holds it. Raises ConfError."""
    return _plugin(_document(data, where), where)


def refuse_recursion(conf: NetworkConf) -> None:
    """Raises ConfError for a delegate that is this program again: each would call the next until the node is full."""
    for plugin in conf.plugins:
        if plugin.type in OUR_PLUGINS:
            raise ConfError(
                f'network "{conf.name}" delegates to "{plugin.type}", which is this program itself',
                hint="name the plugin that is to make the interface, such as bridge or macvlan",
            )


def check_name(name: str, what: str) -> None:
    """Raises ConfError for a network name that plugins could not make a file name of."""
    if not _NAME.fullmatch(name):
        raise ConfError(
            f"{what} is {name!r:.80}",
            hint="a letter or digit, then letters, digits, underscores, dots and hyphens; 253 characters at most",
        )


def check_version(version: str, what: str) -> None:
    """Raises ConfError for what has not the form of a version. One that we do not know is for its plugins to refuse."""
    if not _VERSION.fullmatch(version):
        raise ConfError(f"{what} is {version!r:.40}", hint='a version of the CNI specification, such as "1.0.0"')


def is_plugin_type(kind: str) -> bool:
    """Whether a plugin can have this name: it becomes a file's."""
    return not _TYPE_REFUSED.search(kind) and kind not in (".", "..") and len(kind.encode(errors="replace")) <= 255


def _document(data: bytes, where: str) -> Document:
    if len(data) > MAX_CONF:
        raise ConfError(f"{where}: {len(data)} bytes", hint=f"a network configuration has {MAX_CONF} at most")
    try:
        return document.decode(data)
    except DocumentError as error:
        raise ConfError(
            f"{where}: no network configuration: {error}", hint="it must be one JSON object; check quotes and commas"
        ) from None


def _field(top: Document, key: str, kind: type[T], where: str) -> T | None:
    raw = document.member(top, key)
    if raw is None:
        return None
    try:
        return document.value(raw, kind)
    except DocumentError as error:
        raise ConfError(f'{where}: "{key}": {error}') from None


def _flag(top: Document, key: str, where: str) -> bool:
    """A boolean, or "true" / "false" in any case, as libcni reads it."""
    raw = document.member(top, key)
    text = bytes(raw).lower().strip(b'"') if raw is not None else b"false"
    if text not in (b"true", b"false"):
        raise ConfError(f'{where}: "{key}" is {document.quote(text)}', hint="true or false")
    return text == b"true"


def _plugins(listed: list[msgspec.Raw], where: str) -> tuple[Plugin, ...]:
    if not listed:
        raise ConfError(f'{where}: "plugins" is empty', hint="a network needs one plugin at least")
    if len(listed) > MAX_PLUGINS:
        raise ConfError(f'{where}: {len(listed)} "plugins"', hint=f"{MAX_PLUGINS} at most")
    return tuple(parse_plugin(bytes(raw), where=f"{where}, plugins[{index}]") for index, raw in enumerate(listed))


def _plugin(body: Document, where: str) -> Plugin:
    kind = _field(body, "type", str, where)
    if not kind:
        raise ConfError(f'{where}: a plugin without "type"', hint='"type" names the plugin\'s program, such as macvlan')
    if not is_plugin_type(kind):
        raise ConfError(f'{where}: "type" is {kind!r:.80}', hint="it must be a plain file name")
    granted = _field(body, "capabilities", dict[str, bool | None], where) or {}
    return Plugin(type=kind, capabilities={key: bool(on) for key, on in granted.items()}, body=body)


def _untyped(top: Document, where: str, only_inlined: bool) -> ConfError:
    """No "type" and no "plugins": what was meant?"""
    if only_inlined:
        return ConfError(f'{where}: "loadOnlyInlinedPlugins" is true, but there are no "plugins"')
    hint = 'a plugin needs "type"; a list of them needs "plugins"'
    for key in list(top)[:32]:
        if document.fold(key) in ("type", "plugins"):  # spelled well, so it is null
            hint = f'"{key}" is null'
            break
        if near := difflib.get_close_matches(document.fold(key[:32]), ("type", "plugins"), 1):
            hint = f'"{key}" should perhaps be "{near[0]}"'
            break
    return ConfError(f"{where}: no 'type' and no 'plugins'; perhaps this is supposed to be a .conflist?", hint=hint)


def _highest(version: str, versions: Sequence[str], where: str) -> str:
    """The version to speak: the highest given that we know. Without "cniVersions", the one given, known or not."""
    if version:
        check_version(version, f'{where}: "cniVersion"')
    for each in versions:
        check_version(each, f'{where}: "cniVersions"')
    known = [each for each in (version, *versions) if each in SUPPORTED]
    return max(known, key=SUPPORTED.index) if versions and known else version
