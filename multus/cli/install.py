"""`multusctl install` and `multusctl uninstall`: the shim and the CNI configuration on a host.

Flags are named as those of upstream's entrypoints where these have one, and take "--flag=true" as theirs do. They go
over the keys of the daemon's file, if one is given; without it everything has its default.
"""

import argparse
from pathlib import Path
from typing import Any, Final

import msgspec

from multus.cli import output
from multus.files import FileError, read_small
from multus.install.binary import NAMES, own_shim
from multus.install.errors import InstallError
from multus.install.host import Options, install_host
from multus.install.uninstall import uninstall_host
from multus.settings import DaemonSettings, parse_daemon
from multus.settings.keys import members

_MAX_FILE: Final = 1024 * 1024
_DEFAULTS: Final = DaemonSettings()

# flag, the daemon's key, its help
_TEXTS: Final = (
    ("--cni-conf-dir", "cniConfigDir", f"the runtime's CNI configurations (default {_DEFAULTS.cni_config_dir})"),
    ("--multus-conf-file", "multusConfigFile", "a CNI configuration to copy; auto (the default) generates one"),
    ("--cni-dir", "cniDir", f"multusd's state (default {_DEFAULTS.cni_dir})"),
    ("--socket-dir", "daemonSocketDir", f"directory of multusd's socket on the host (default {_DEFAULTS.socket_dir})"),
)
_GENERATED: Final = (
    ("--cni-version", "cniVersion", "CNI version of the configuration (default: the default network's)"),
    ("--multus-autoconfig-dir", "multusAutoconfigDir", "where the default network's is (default: --cni-conf-dir)"),
    ("--multus-master-cni-file-name", "multusMasterCNI", "which file there it is (default: the first)"),
    ("--multus-cni-conf-dir", "confDir", "configurations for NetworkAttachmentDefinitions without one"),
    ("--additional-bin-dir", "binDir", "directory in which plugins are looked for first"),
    ("--global-namespaces", "globalNamespaces", "comma separated, for --namespace-isolation"),
    ("--readiness-indicator-file", "readinessindicatorfile", "file that the ready default network makes"),
    ("--multus-log-level", "logLevel", "debug, verbose, error or panic"),
    ("--multus-log-file", "logFile", "file to log to"),
)
_FLAGS: Final = (
    ("--override-network-name", "overrideNetworkName", "take over the default network's name"),
    ("--force-cni-version", "forceCNIVersion", "use --cni-version whatever the default network's is"),
    ("--namespace-isolation", "namespaceIsolation", "pods may only use networks of their own namespace"),
    ("--multus-log-to-stderr", "logToStderr", "log to stderr, too"),
)


def add_parser(subparsers: Any) -> None:
    """Both subcommands."""
    install = subparsers.add_parser("install", help="put the shim and the CNI configuration on this host")
    _common(install)
    for flag, key, text in _GENERATED:
        install.add_argument(flag, dest=key, metavar="VALUE", help=text)
    for flag, key, text in _FLAGS:
        install.add_argument(flag, dest=key, nargs="?", const=True, type=_boolean, metavar="true|false", help=text)
    install.add_argument("--multus-bin-file", type=Path, metavar="FILE", help="the shim (default: the package's own)")
    install.add_argument("--multus-shim", action="store_true", help='also under upstream\'s name, "multus-shim"')
    install.add_argument(
        "--skip-multus-binary-copy", nargs="?", const=True, default=False, type=_boolean, metavar="true|false",
        help="only the configuration",
    )  # fmt: skip
    install.add_argument("--skip-conf", action="store_true", help="only the shim: multusd writes the configuration")
    install.set_defaults(run=run)
    uninstall = subparsers.add_parser("uninstall", help="leave this host as it was")
    _common(uninstall)
    uninstall.add_argument("--state", action="store_true", help="remove the journal and stored DELs, too")
    uninstall.add_argument("--force", action="store_true", help="although pods of this node hold networks")
    uninstall.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out either subcommand. 0 when it is done."""
    settings = _settings(arguments)
    if arguments.command == "uninstall":
        options = Options(settings=settings, bin_dir=arguments.cni_bin_dir)
        lines = uninstall_host(options, state=arguments.state, force=arguments.force, dry_run=arguments.dry_run)
    else:
        options = Options(
            settings=settings,
            bin_dir=arguments.cni_bin_dir,
            shim=None if arguments.skip_multus_binary_copy else arguments.multus_bin_file or own_shim(),
            names=NAMES if arguments.multus_shim or settings.type == NAMES[1] else NAMES[:1],
            conf=not arguments.skip_conf,
        )
        lines = install_host(options, dry_run=arguments.dry_run)
    for line in lines:
        print(output.printable(line))
    return 0


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cni-bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR", help="the host's CNI plugins"
    )
    for flag, key, text in _TEXTS:
        parser.add_argument(flag, dest=key, metavar="VALUE", help=text)
    parser.add_argument("--config", type=Path, metavar="FILE", help="daemon-config.json to start from")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def _settings(arguments: argparse.Namespace) -> DaemonSettings:
    """The daemon's file with the flags over it."""
    where, given = "the flags", {}
    if arguments.config:
        where = str(arguments.config)
        try:
            given = members(read_small(arguments.config, limit=_MAX_FILE), where)
        except FileError as error:
            raise InstallError(error.message, hint=error.hint or "--config names daemon-config.json") from None
    chosen = {
        key: msgspec.json.encode(value)
        for _, key, _ in (*_TEXTS, *_GENERATED, *_FLAGS)
        if (value := getattr(arguments, key, None)) is not None
    }
    folded = {key.casefold() for key in chosen}
    merged = {key: value for key, value in given.items() if key.casefold() not in folded} | chosen
    data = msgspec.json.encode({key: msgspec.Raw(value) for key, value in merged.items()})
    return parse_daemon(data, where=where)


def _boolean(text: str) -> bool:
    """As Go's flags read it."""
    values = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]
