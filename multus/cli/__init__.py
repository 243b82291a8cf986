"""multusctl: what people do with a node: show, attach by hand, explain, validate, install.

Each subcommand is a module with `add_parser(subparsers)`, which sets `run`, and `run(arguments) -> exit code`.
"""

import argparse
import sys
from collections.abc import Sequence

from multus.cli import attach, attachments, demo, devices, doctor, dpdk, explain, install, ready, validate, vf
from multus.errors import MultusError

_COMMANDS = (demo, attach, explain, validate, attachments, devices, vf, dpdk, doctor, ready, install)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `multusctl`. Exit codes: 0 done, 1 it failed or something is wrong, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="multusctl", description="Networks of pods on this node.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except MultusError as error:
        print(f"multusctl {chosen.command}: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
