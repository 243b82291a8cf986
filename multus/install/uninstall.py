"""Taking multus off a host, so that it is as it was: the configuration first, then the shim, the state only when asked.

Whoever removes the shim while pods hold networks makes them impossible to delete, so that is refused.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from multus.files import FileError
from multus.install import binary, place
from multus.install.errors import InstallError
from multus.install.host import Options, carry_out
from multus.install.steps import Remove, RemoveEmpty, Step, holding, present
from multus.journal import JournalError, read_journal
from multus.sandbox import Sandbox

_LOCK: Final = "multusd.lock"
_JOURNAL: Final = "journal.db"
_SIDE_FILES: Final = ("-wal", "-shm")  # of the journal, made by whoever reads it, too
_NAMED: Final = 3  # pods in a message


def uninstall_host(options: Options, *, state: bool = False, force: bool = False, dry_run: bool = False) -> list[str]:
    """Uninstall; a line for each thing that was done, or would be. Only what is ours goes; what it replaced returns.

    :param state: remove the journal and stored DELs, too.
    :param force: although pods hold networks.
    :raises InstallError: multusd runs, or pods hold networks; nothing was touched then.
    :raises FileError: a file could not be removed.
    """
    directory = Path(options.settings.cni_dir)
    with _without_daemon(directory):
        if not force:
            _refuse_while_held(directory)
        lines: list[str] = []
        conf_dir = Path(options.settings.cni_config_dir)
        if conf_dir.is_dir():
            with holding(conf_dir):
                steps, left = place.plan_removal(options.settings)
                lines += carry_out(steps, dry_run=dry_run) + left
        if options.bin_dir.is_dir():
            with holding(options.bin_dir):
                steps, left = binary.plan_removal(options.bin_dir)
                lines += carry_out(steps, dry_run=dry_run) + left
        if state:
            socket_dir = Path(options.settings.daemon_socket_dir or options.settings.socket_dir)
            lines += carry_out(_plan_state(directory, socket_dir), dry_run=dry_run)
        elif present(directory / _JOURNAL):
            lines.append(f"left {directory}: the state of this node's networks stays unless it is asked for")
    return lines or ["nothing of multus is installed here"]


@contextmanager
def _without_daemon(directory: Path) -> Iterator[None]:
    """Keep the daemon from starting meanwhile. A running one would write its configuration again at once.

    :raises InstallError: it runs.
    """
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise InstallError(f"cannot look at {directory}: {error.strerror or error}", hint="run as root") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InstallError(
            f"multusd is running: it holds {directory}",
            hint="stop it first (delete its DaemonSet or stop the service): it would put its configuration back",
        ) from None
    finally:
        os.close(descriptor)


def _refuse_while_held(directory: Path) -> None:
    waiting = sorted(directory.glob("spool/*.del"))
    if waiting:
        raise InstallError(
            f"{len(waiting)} DELs wait in {directory / 'spool'} for multusd", hint=_hint("start multusd once more")
        )
    journal = directory / _JOURNAL
    if not present(journal):
        return
    held = _read(journal)
    if held:
        names = [f"{each.pod_namespace}/{each.pod_name}" for each in held[:_NAMED]]
        more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
        raise InstallError(
            f"pods of this node still hold networks: {', '.join(names)}{more}", hint=_hint("drain the node first")
        )


def _read(journal: Path) -> list[Sandbox]:
    side_files = [journal.with_name(journal.name + suffix) for suffix in _SIDE_FILES]
    guarded = present(journal.with_name(_LOCK))
    fresh = [path for path in side_files if guarded and not present(path)]
    try:
        return read_journal(journal)
    except JournalError as error:
        raise InstallError(
            f"it is not known whether pods still hold networks: {error.message}", hint=_hint("look at the journal")
        ) from None
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)  # nobody else has it open: the daemon is kept out


def _hint(first: str) -> str:
    return f"{first}; or --force, and such pods cannot be deleted without a new installation"


def _plan_state(directory: Path, socket_dir: Path) -> list[Step]:
    """Steps that remove the daemon's state. What an earlier Multus left in the same directory is not ours."""
    names = [_JOURNAL, *(_JOURNAL + suffix for suffix in _SIDE_FILES), _LOCK]
    files = [directory / name for name in names]
    spool = directory / "spool"
    try:
        spooled = sorted(spool.iterdir()) if spool.is_dir() and not spool.is_symlink() else []
    except OSError as error:
        raise FileError(f"cannot list {spool}: {error.strerror or error}") from None
    steps: list[Step] = [Remove(path=path, what="state") for path in (*spooled, *files) if present(path)]
    for path in (spool, directory):
        if path.is_dir():
            steps.append(RemoveEmpty(path=path))
    if present(socket_dir / "multus.sock"):
        steps += [Remove(path=socket_dir / "multus.sock", what="nobody listens"), RemoveEmpty(path=socket_dir)]
    return steps
