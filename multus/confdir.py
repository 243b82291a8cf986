"""Network configurations in files: by the name they carry, by path, and the chain directories beside them.

Everything here blocks: the resolver runs it in a thread. What was read once is kept for as long as the file's stamp
stays the same, so a pod costs a stat for each file and no parsing.
"""

import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from multus.cni.conf import ConfError, NetworkConf, Plugin, parse_conf, parse_plugin, refuse_recursion, with_chained
from multus.cni.network import MAX_CONF, MAX_PLUGINS, check_name
from multus.files import FileError, read_small

logger = logging.getLogger(__name__)

NAMED: Final = (".conf", ".conflist", ".json")
FIRST: Final = (".conf", ".conflist")
CHAINED: Final = (".conf",)
OURS: Final = "00-multus"
"""How the generated configuration's name begins: it leads back here, so a directory's first network is another."""

_MAX_FILES = 4096
_SETTLED = 2_000_000_000  # ns; a file that changed less ago could change again within its time stamp's resolution

T = TypeVar("T")
Stamp = tuple[int, int, int, int, int]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A network configuration and the file that it was in."""

    conf: NetworkConf
    path: str


class Files:
    """Reads configurations. `root` stands before every path, for a daemon that sees the host's files elsewhere.

    Safe to use from several threads. `clock` gives the time in nanoseconds, as file stamps have it.
    """

    def __init__(self, root: str = "", *, clock: Callable[[], int] = time.time_ns) -> None:
        self._root = root
        self._clock = clock
        self._kept: dict[tuple[Path, object], tuple[Stamp, object]] = {}

    def by_name(self, directory: str, name: str) -> Found:
        """The first configuration, in order of file names, whose own name is `name`.

        :raises ConfError: a file before it cannot be used: which network it was meant to be, nobody knows.
        :raises FileError: no configuration has that name (`missing`), or the directory cannot be read.
        """
        for path in self._files(self._path(directory), NAMED):
            found = self._network(path)
            if found is not None and found.conf.name == name:
                return found
        raise FileError(
            f"cannot find network: no configuration in {directory} has the name {name!r:.260}",
            hint=f'it is the key "name" in a {", ".join(NAMED)} file that counts, not the name of the file',
            missing=True,
        )

    def cluster_network(self, value: str) -> Found:
        """A clusterNetwork with a slash in it: a file, or a directory, whose first configuration it then is.

        :raises ConfError: the file cannot be used. :raises FileError: it is not there or cannot be read.
        """
        if not value.startswith("/"):
            raise FileError(
                f"cannot find network: {value!r:.300} is no absolute path",
                hint="a NetworkAttachmentDefinition is named without its namespace, which multusNamespace says",
                missing=True,
            )
        path = self._path(value)
        if not self._is_directory(path):
            found = self._network(path)
            if found is not None:
                return found
            raise FileError(
                f"cannot find network: there is no file {value!r:.300}", hint="check clusterNetwork", missing=True
            )
        for candidate in self._files(path, FIRST):
            if candidate.name.startswith(OURS):
                continue
            found = self._network(candidate)
            if found is not None:
                return found
        raise FileError(
            f"cannot find network: no {' or '.join(FIRST)} file in {path}", hint="check clusterNetwork", missing=True
        )

    def auxiliary(self, cluster_network_path: str, chain_name: str, cni_version: str) -> Found | None:
        """A network of the plugins in the directory `chain_name` beside the cluster network's file; None without any.

        It has `passthru` before them: something must make the result that the first of them is given.

        :raises ConfError: one of them, or the chain's name, cannot be used. :raises FileError: cannot be read.
        """
        check_name(chain_name, "auxiliaryCNIChainName")
        path = self._path(cluster_network_path)
        directory = (path if self._is_directory(path) else path.parent) / chain_name
        top = {"cniVersion": cni_version} if cni_version else {}
        base = {**top, "name": chain_name, "plugins": [{"type": "passthru", "name": "passthru-cni"}]}
        conf = parse_conf(msgspec.json.encode(base), where=f"auxiliary chain {directory}")
        chained = self._chained(conf, directory)
        if chained is conf:
            return None
        refuse_recursion(chained)
        return Found(conf=chained, path=str(directory))

    def _path(self, path: str) -> Path:
        return Path(self._root + path) if path.startswith("/") else Path(self._root, path)

    def _network(self, path: Path) -> Found | None:
        """A file's network with what its directory chains to it; None when there is no such file (any more)."""
        conf = self._read(path, _parse)
        if conf is None:
            return None
        if conf.is_list and conf.name and not conf.load_only_inlined_plugins:
            conf = self._chained(conf, path.parent / conf.name)  # a checked name cannot lead out of the directory
        if not conf.plugins:
            raise ConfError(
                f"{path}: no plugin configs found",
                hint=f'it has no "plugins", and {path.parent / (conf.name or "(its name)")} has no .conf files',
            )
        return Found(conf=conf, path=str(path))

    def _chained(self, conf: NetworkConf, directory: Path) -> NetworkConf:
        try:
            paths = self._files(directory, CHAINED)
        except FileError as error:
            if error.missing:
                return conf
            raise
        plugins = [plugin for plugin in (self._read(path, _parse_plugin) for path in paths) if plugin is not None]
        if len(conf.plugins) + len(plugins) > MAX_PLUGINS:
            raise ConfError(
                f"network {conf.name!r} has {len(plugins)} plugins in {directory}", hint=f"{MAX_PLUGINS} at most"
            )
        return with_chained(conf, plugins)

    def _files(self, directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
        """Files with these suffixes, as Go sorts them; directories and hidden files are left out.

        :raises FileError: the directory is not there, or cannot be read.
        """
        stamp = self._stamp(directory)
        names = self._recall(directory, suffixes, stamp, tuple[str, ...])
        if names is None:
            names = _list(directory, suffixes)
            self._keep(directory, suffixes, stamp, names)
        return [directory / name for name in names]

    def _read(self, path: Path, parse: Callable[[bytes, Path], T]) -> T | None:
        """The parsed file, None when it vanished after its directory was listed.

        :raises ConfError: it cannot be used. :raises FileError: it cannot be read; a link to nothing is such a file.
        """
        try:
            # The stamp is taken first: content that is newer than its stamp is only read once more.
            stamp = self._stamp(path)
            kept = self._recall(path, parse, stamp, object)
            if kept is None:
                kept = parse(read_small(path, limit=MAX_CONF), path)
                self._keep(path, parse, stamp, kept)
        except FileError as error:
            if error.missing and not os.path.islink(path):  # noqa: PTH114 (quiet about odd names)
                return None
            raise
        return kept  # type: ignore[return-value]  # kept under the function that made it

    def _stamp(self, path: Path) -> Stamp:
        try:
            found = path.stat()
        except OSError as error:
            reason = error.strerror or str(error)
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            raise FileError(f"cannot read {path}: {reason}", missing=missing) from None
        except ValueError:
            raise FileError(f"not a path: {str(path)!a:.300}", missing=True) from None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev

    def _is_directory(self, path: Path) -> bool:
        try:
            return stat.S_ISDIR(path.stat().st_mode)
        except (OSError, ValueError):
            return False  # whoever reads it will say what is wrong

    def _recall(self, path: Path, how: object, stamp: Stamp, kind: type[T]) -> T | None:
        kept = self._kept.get((path, how))
        return kept[1] if kept is not None and kept[0] == stamp else None  # type: ignore[return-value]

    def _keep(self, path: Path, how: object, stamp: Stamp, item: object) -> None:
        if self._clock() - max(stamp[0], stamp[1]) < _SETTLED:
            return
        if len(self._kept) >= _MAX_FILES:
            self._kept.clear()
        self._kept[path, how] = stamp, item


def _list(directory: Path, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    try:
        with os.scandir(directory) as entries:
            found = [entry.name for entry in entries if entry.name.endswith(suffixes) and not entry.is_dir()]
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise FileError(f"cannot list {directory}: {error.strerror or error}", missing=missing) from None
    # A hidden file is what some tool is about to rename to its real name.
    return tuple(sorted((name for name in found if not name.startswith(".") and _is_text(name)), key=os.fsencode))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        logger.warning("configuration file %a is left out: its name is not UTF-8", name)
        return False
    return True


def _parse(data: bytes, path: Path) -> NetworkConf:
    """A file's configuration; its suffix says which form it has, here as for the runtimes that read the same files."""
    listed = path.suffix == ".conflist"
    conf = parse_conf(data, where=str(path), plugins_elsewhere=listed)
    if listed and not conf.is_list:
        raise ConfError(f"{path}: no 'plugins'; perhaps this is supposed to be a .conf?", hint="or rename the file")
    if conf.is_list and not listed:
        raise ConfError(f"{path}: no 'type'; perhaps this is supposed to be a .conflist?", hint="rename the file")
    return conf


def _parse_plugin(data: bytes, path: Path) -> Plugin:
    return parse_plugin(data, where=str(path))
