"""What the tools ask of a running multusd, over HTTP on its socket."""

import http.client
import socket
from pathlib import Path

import msgspec

from multus.byhand_asks import ByHandError, Operation, Placed
from multus.cli.ready import AskError

_PATIENCE = 120.0  # seconds: the daemon may have to ask the kubelet, and a PF be slow to make its VFs
_SHOW = 2.0


class Client(http.client.HTTPConnection):
    """HTTP over the socket at `path`."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("multus", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Refusal(msgspec.Struct):
    msg: str = ""
    details: str = ""


def ask(path: Path, operation: Operation, body: bytes = b"", *, timeout: float = 0.0) -> bytes | None:
    """The daemon's answer about devices; None when no daemon listens at `path`. `timeout` in seconds, 0 for 120.

    :raises AskError: one does, and does not answer in time, or not as it should.
    :raises ByHandError: it refuses.
    """
    client = Client(path, timeout or _PATIENCE)
    target = "/devices" if operation == "show" else f"/devices/{operation}"
    try:
        client.request("GET" if operation == "show" else "POST", target, body or None)
        answer = client.getresponse()
        data = answer.read()
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except (OSError, http.client.HTTPException) as error:
        said = "it does not answer in time" if isinstance(error, TimeoutError) else str(error)
        raise AskError(f"multusd on {path}: {said}", hint="run as root; multusctl doctor says more") from None
    finally:
        client.close()
    if answer.status == 200:
        return data
    if answer.status == 404:
        raise AskError(f"the multusd on {path} gives out no devices when asked", hint="it is an older release")
    try:
        refusal = msgspec.json.decode(data, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        refusal = _Refusal(msg=f"multusd on {path} answers {answer.status}")
    raise ByHandError(refusal.msg, hint=refusal.details)


def placed(path: Path) -> dict[str, Placed] | None:
    """Every device in a pool of the running daemon; None when none runs.

    :raises AskError: it does not say. :raises ByHandError: it refuses to.
    """
    data = ask(path, "show", timeout=_SHOW)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, Placed])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AskError(f"what multusd on {path} says of devices cannot be read: {error}") from None
