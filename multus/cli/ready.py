"""`multusctl ready`: whether multusd serves, asked on its own socket; probes cannot ask a socket themselves."""

import argparse
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar, Final

from multus.errors import Fault, MultusError
from multus.settings import DEFAULT_SOCKET_DIR

_MAX_ANSWER: Final = 64 * 1024


class AskError(MultusError):
    """The daemon does not answer on its socket."""

    fault: ClassVar[Fault] = Fault.OPERATOR
    retry: ClassVar[bool] = True


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "ready", help="ask multusd whether it can serve", description="Exit code 0 when it can, 1 when it cannot."
    )
    parser.add_argument("--socket-dir", type=Path, default=Path(DEFAULT_SOCKET_DIR), help="its socketDir (%(default)s)")
    parser.add_argument("--alive", action="store_true", help="only whether it runs and answers")
    parser.add_argument("--timeout", type=float, default=4.0, metavar="SECONDS", help="patience (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer."""
    path = "/healthz" if arguments.alive else "/readyz"
    good, said = ask(arguments.socket_dir / "multus.sock", path, timeout=arguments.timeout)
    print(said, file=sys.stdout if good else sys.stderr)
    return 0 if good else 1


def ask(path: Path, question: str = "/readyz", *, timeout: float = 4.0) -> tuple[bool, str]:
    """Whether the daemon says yes, and what it says.

    :raises AskError: nobody answers within `timeout` seconds.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout)
            client.connect(str(path))
            client.sendall(f"GET {question} HTTP/1.1\r\nHost: multus\r\n\r\n".encode())
            answer = b""
            while len(answer) < _MAX_ANSWER and (chunk := client.recv(4096)):
                answer += chunk
    except OSError as error:
        hint = "is multusd running, and is this its socketDir?"
        raise AskError(f"{path}: {error.strerror or error}", hint=hint) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if not head.startswith(b"HTTP/1.") or not status:
        raise AskError(f"{path}: what answers there is not multusd", hint="another program uses this socket")
    good = status == [b"200"]
    said = " ".join(body.decode("utf-8", "replace").split())[:1000]
    return good, said or ("yes" if good else "no")
