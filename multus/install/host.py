"""Installing on a host: the shim first, then the configuration that names it."""

from pathlib import Path

import msgspec

from multus.install import binary, place
from multus.install.errors import InstallError, NotYetError
from multus.install.steps import Step, describe, holding, perform
from multus.settings import DaemonSettings


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to install where.

    `shim` is the program to copy under each of `names`, None for none; `conf`: whether to write the configuration,
    too, which the daemon would do otherwise.
    """

    settings: DaemonSettings
    bin_dir: Path = Path("/opt/cni/bin")
    shim: Path | None = None
    names: tuple[str, ...] = ("multus",)
    conf: bool = True


def install_host(options: Options, *, dry_run: bool = False) -> list[str]:
    """Install; a line for each thing that was done, or would be. Done again, it does only what is missing.

    What can be refused is refused before anything is touched.

    :raises InstallError: a directory, the shim or the default network is not as it must be.
    :raises FileError: a file could not be written; what was done stands, and what is to come is as it was.
    """
    shim = binary.read_shim(options.shim) if options.shim else None
    conf_dir = Path(options.settings.cni_config_dir)
    if shim:
        _need(options.bin_dir, "cni-bin-dir")
    want: place.Wanted | None = None
    notes: list[str] = []
    if options.conf:
        _need(conf_dir, "cni-conf-dir")
        want, notes = _wanted(options.settings)
    lines: list[str] = []
    if shim:
        with holding(options.bin_dir):
            lines += carry_out(binary.plan_binary(shim, options.bin_dir, options.names), dry_run=dry_run)
    if want:
        with holding(conf_dir):
            lines += carry_out(place.plan_conf(want, predecessor=True), dry_run=dry_run)
    return [*lines, *notes] or ["nothing to do: everything is installed"]


def carry_out(steps: list[Step], *, dry_run: bool) -> list[str]:
    """Perform the steps or only tell them."""
    return [describe(step, done=False) for step in steps] if dry_run else perform(steps)


def _wanted(settings: DaemonSettings) -> tuple[place.Wanted | None, list[str]]:
    try:
        return place.wanted(settings), []
    except NotYetError as error:
        return None, [f"no CNI configuration yet: {error.message}; multusd writes it as soon as there is one"]


def _need(directory: Path, flag: str) -> None:
    if not directory.is_dir():
        raise InstallError(
            f"{flag} is not found: {directory}",
            hint=f"the container runtime brings it; --{flag} names another place",
        )
