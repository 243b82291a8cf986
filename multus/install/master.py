"""Finding the node's default network, which the generated CNI configuration hands to the daemon."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from multus.cni.conf import NetworkConf, parse_conf, parse_plugin, with_chained
from multus.cni.network import MAX_CONF, ConfError
from multus.files import FileError, read_small
from multus.install.errors import InstallError, NotYetError
from multus.install.generate import CONF_SUFFIXES, OUR_PREFIX, Master, calls_us, delegate_conf
from multus.settings import DaemonSettings

logger = logging.getLogger(__name__)

_HALF: Final = "it may be half written: it is read again when it changes; repair it, or move it away"


def find_master(settings: DaemonSettings) -> Master:
    """The default network: what the settings name, else the first configuration in the autoconfig directory.

    :raises NotYetError: there is none yet.
    :raises InstallError: it cannot be used, half written perhaps.
    """
    if "/" in settings.cluster_network:
        return _read(_file(Path(settings.cluster_network)), network=settings.cluster_network)
    if settings.cluster_network:
        return Master(network=settings.cluster_network)
    if settings.delegates:
        return Master(conf=_usable(lambda: delegate_conf(settings.delegates[0])))
    directory = Path(settings.multus_autoconfig_dir)
    if not settings.multus_master_cni:
        return _first(directory)
    path = directory / settings.multus_master_cni
    if path.name.startswith(OUR_PREFIX):
        raise InstallError(f"cannot specify {path} to prevent recursive config load", hint="check multusMasterCNI")
    return _read(path)


def master_directory(settings: DaemonSettings) -> Path | None:
    """The directory whose changes may change the default network; None when no file says what it is."""
    if "/" in settings.cluster_network:
        path = Path(settings.cluster_network)
        return path if path.is_dir() else path.parent
    if settings.cluster_network or settings.delegates:
        return None
    return Path(settings.multus_autoconfig_dir)


def _file(path: Path) -> Path:
    """A clusterNetwork that is a directory means the first configuration in it."""
    if not path.is_dir():
        return path
    for candidate in _candidates(path):
        return candidate
    raise NotYetError(f"no CNI configuration in {path}", hint="clusterNetwork names this directory")


def _first(directory: Path) -> Master:
    for path in _candidates(directory):
        master = _read(path, allow_ours=True)
        assert master.conf is not None
        if not calls_us(master.conf):
            return master
        logger.debug("%s calls multus itself: it is not taken for the default network", path)
    raise NotYetError(
        f"could not find a plugin configuration in {directory}",
        hint="the cluster's default network puts it there when it is installed; multusAutoconfigDir says where to look",
    )


def _candidates(directory: Path) -> list[Path]:
    """Configurations in the order in which a runtime looks at them, without what is generated here."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        raise NotYetError(f"there is no directory {directory}", hint="check multusAutoconfigDir and mounts") from None
    except OSError as error:
        raise InstallError(f"error when listing the CNI plugin configurations: {directory}: {error.strerror}") from None
    return [
        directory / name
        for name in names
        if name.endswith(CONF_SUFFIXES) and not name.startswith((OUR_PREFIX, ".")) and not (directory / name).is_dir()
    ]


def _read(path: Path, *, network: str = "", allow_ours: bool = False) -> Master:
    conf = _usable(lambda: _chained(path))
    if calls_us(conf) and not allow_ours:
        raise InstallError(
            f"{path} calls multus itself: it cannot be the default network", hint="name the primary network's file"
        )
    return Master(network=network or str(path.absolute()), conf=conf)  # a name without / would be a NAD's


def _chained(path: Path) -> NetworkConf:
    """The configuration with the plugins of its own directory (CNI 1.1), which may have capabilities, too."""
    where = str(path)
    is_list = path.suffix == ".conflist"
    conf = parse_conf(read_small(path, limit=MAX_CONF), where=where, plugins_elsewhere=is_list)
    if not is_list or conf.load_only_inlined_plugins:
        return conf
    directory = path.parent / (conf.name or ".")
    files = sorted(directory.glob("*.conf")) if conf.name and directory.is_dir() else []
    conf = with_chained(conf, [parse_plugin(read_small(file, limit=MAX_CONF), where=str(file)) for file in files])
    if not conf.plugins:
        raise ConfError(f'{path}: no "plugins", and none in {directory}')
    return conf


def _usable(read: Callable[[], NetworkConf]) -> NetworkConf:
    """A configuration that can be used.

    :raises NotYetError: its file is not there.
    :raises InstallError: nothing that a plugin could be called with.
    """
    try:
        return read()
    except FileError as error:
        kind = NotYetError if error.missing else InstallError
        raise kind(f"failed to read the primary CNI plugin config: {error.message}", hint=error.hint) from None
    except ConfError as error:
        raise InstallError(f"failed to read the primary CNI plugin config: {error.message}", hint=_HALF) from None
    except OSError as error:
        raise InstallError(f"failed to read the primary CNI plugin config: {error}", hint=_HALF) from None
