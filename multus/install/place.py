"""The CNI configuration in its place: which file it is, what it holds, and what must not be beside it."""

from pathlib import Path
from typing import Final

import msgspec

from multus.cni.conf import parse_conf
from multus.cni.network import MAX_CONF, ConfError
from multus.files import FileError, read_small
from multus.install.errors import InstallError, NotYetError
from multus.install.generate import LIST, SINGLE, generate, generated_here
from multus.install.master import find_master, master_directory
from multus.install.steps import (
    Remove,
    Restore,
    Step,
    Write,
    aside,
    holding,
    holds,
    keep_predecessor,
    leftovers,
    perform,
    present,
)
from multus.settings import DaemonSettings

_MODE: Final = 0o600
_READ_BY_RUNTIMES: Final = (".conf", ".conflist", ".json")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration as it should be; `source` is what it was made from, for people.

    `generated`: made here, not the operator's own. `in_place`: it is the operator's and lies there already.
    """

    path: Path
    data: bytes
    source: str
    generated: bool = True
    in_place: bool = False


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What keeping the configuration came to: as it is now in its place, what was done, and what was wrong.

    `directories` are those in which something may happen that asks for another look.
    """

    wanted: Wanted | None
    directories: frozenset[Path]
    done: tuple[str, ...] = ()
    problem: InstallError | FileError | None = None


def wanted(settings: DaemonSettings) -> Wanted:
    """The configuration as it should be now.

    :raises NotYetError: what it is made from is not there yet.
    :raises InstallError: it cannot be made.
    """
    directory = Path(settings.cni_config_dir)
    if settings.auto:
        master = find_master(settings)
        made = generate(settings, master)
        source = f"for {master.network or 'the delegates of the settings'}"
        return Wanted(path=directory / made.name, data=made.data, source=source)
    return _copy(Path(settings.multus_config_file), directory)


def keep(settings: DaemonSettings, last: Wanted | None = None) -> Kept:
    """Make the configuration what it should be, as far as it can be known; for the daemon.

    `last` is what it was: it holds as long as nothing newer can be made. Without it, what lies there is left alone.
    """
    problem: InstallError | FileError | None = None
    want, directories = last, frozenset({Path(settings.cni_config_dir)})
    try:
        directories |= _sources(settings)
        _check_ready(settings)
        want = wanted(settings)
    except (InstallError, FileError) as error:
        problem = error
    except (OSError, ValueError) as error:
        problem = FileError(f"cannot read what the CNI configuration is made from: {error}")
    if want is None:
        return Kept(wanted=None, directories=directories, problem=problem)
    try:
        with holding(want.path.parent):
            done = tuple(perform(plan_conf(want, predecessor=False)))
    except (InstallError, FileError) as error:
        return Kept(wanted=last, directories=directories, problem=error)
    except (OSError, ValueError) as error:
        return Kept(wanted=last, directories=directories, problem=FileError(f"cannot look at {want.path}: {error}"))
    return Kept(wanted=want, directories=directories, done=done, problem=problem)


def plan_conf(want: Wanted, *, predecessor: bool) -> list[Step]:
    """Steps that put the configuration into its place, then remove the other generated one, which may come before it.

    :param predecessor: keep what another generator had there, to be brought back.
    """
    path = want.path
    others = [path.with_name(name) for name in (SINGLE, LIST) if name != path.name]
    steps: list[Step] = leftovers(path.parent, (path.name, SINGLE, LIST))
    for old in (path, *others):
        # An operator's own file of this name is his to keep, and what lies there may be our copy of an older one.
        if predecessor and (old != path or want.generated) and present(old) and not generated_here(_content(old)):
            steps += keep_predecessor(old)
    if not want.in_place and not holds(path, want.data, _MODE):
        steps.append(Write(path=path, data=want.data, mode=_MODE, what=f"CNI configuration {want.source}"))
    steps += [Remove(path=other, what=f"{path.name} is in its place") for other in others if present(other)]
    return steps


def plan_removal(settings: DaemonSettings) -> tuple[list[Step], list[str]]:
    """Steps that take our configuration away and bring back what was there; and what is left alone, for people."""
    directory = Path(settings.cni_config_dir)
    ours = {directory / SINGLE, directory / LIST}
    copy = _installed_copy(settings)
    steps: list[Step] = []
    gone: list[Step] = []
    left = []
    for path in sorted(ours | ({copy} if copy else set())):
        there = present(path)
        if there and path != copy and not generated_here(_content(path)):
            left.append(f"left {path}: it was not made by multus")
            if present(aside(path)):
                gone.append(Remove(path=aside(path), what="somebody put a newer one in its place"))
        elif present(aside(path)):
            steps.append(Restore(path=path))
        elif there:
            gone.append(Remove(path=path, what="CNI configuration"))
    names = {SINGLE, LIST, *([copy.name] if copy else [])}
    return steps + gone + leftovers(directory, sorted(names)), left


def _sources(settings: DaemonSettings) -> set[Path]:
    source = master_directory(settings) if settings.auto else Path(settings.multus_config_file).parent
    return {source} if source else set()


def _copy(source: Path, directory: Path) -> Wanted:
    """The operator's own configuration, which is copied as it stands."""
    if source.suffix not in _READ_BY_RUNTIMES:
        raise InstallError(
            f"no runtime would read {source.name}", hint=f"its name must end in {', '.join(_READ_BY_RUNTIMES)}"
        )
    try:
        data = read_small(source, limit=MAX_CONF)
        parse_conf(data, where=str(source))
    except FileError as error:
        kind = NotYetError if error.missing else InstallError
        raise kind(f"failed to copy the user provided configuration: {error.message}", hint=error.hint) from None
    except ConfError as error:
        raise InstallError(
            f"failed to copy the user provided configuration: {error.message}", hint=error.hint
        ) from None
    path = directory / source.name
    in_place = path.exists() and source.samefile(path)
    return Wanted(path=path, data=data, source=f"from {source}", generated=False, in_place=in_place)


def _installed_copy(settings: DaemonSettings) -> Path | None:
    """Where the operator's configuration was copied; None when it is generated, differs by now, or is the original."""
    if settings.auto:
        return None
    source = Path(settings.multus_config_file)
    path = Path(settings.cni_config_dir) / source.name
    original = path.exists() and source.exists() and source.samefile(path)
    return None if original or _content(source) != _content(path) else path


def _check_ready(settings: DaemonSettings) -> None:
    """The first configuration waits for the default network to say that it is ready, as in upstream.

    One that stands stays: without it pods would come up with only their primary network.
    """
    indicator = settings.readiness_indicator_file
    if not settings.auto or not indicator or Path(indicator).exists():
        return
    directory = Path(settings.cni_config_dir)
    if not any(present(directory / name) for name in (SINGLE, LIST)):
        raise NotYetError(
            f"still waiting for readinessindicatorfile {indicator}",
            hint="have you checked that your default network is ready?",
        )


def _content(path: Path) -> bytes:
    """b"" for what is absent or no configuration by its size or kind."""
    try:
        return read_small(path, limit=MAX_CONF)
    except FileError:
        return b""
