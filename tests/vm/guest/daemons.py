"""multusd without the seconds that its imports take here: a process that has done them waits, and is forked for each.

The start as it is on a node, a program of its own, is what the kernel lane and the cluster lane have.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

_IMPORTED: Final = (
    *("multus.daemon", "multus.policies", "multus.install.keeper", "multus.kube.manifests"),
    *("devices.manager", "devices.kubelet.registration", "devices.kubelet.podresources"),
)
"""What a daemon with pools has in the end; most of it the tests import, too."""
_IN_A_CLUSTER: Final = ("aiohttp.web", "multus.kube.live", "multus.kube.api", "multus.metrics")
_OF_ITS_LIBRARY: Final = ("client.rest", "config.kube_config")


class Daemon:
    """A process that is no child of this one, for whoever expects a Popen. What it ended with is not known."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        try:
            self._file = os.pidfd_open(pid)
        except ProcessLookupError:  # already
            self.returncode = 0

    def poll(self) -> int | None:
        """None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float) -> int:
        """Until it has ended.

        :raises subprocess.TimeoutExpired: it has not.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("multusd", timeout)
        return code

    def kill(self) -> None:
        """kill -9."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._file, number)

    def _ended(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._file], [], [], seconds)[0]:
            os.close(self._file)
            self.returncode = 0
        return self.returncode


class Spawner:
    """The process that is forked. It goes when this one does."""

    ready: ClassVar["Spawner | None"] = None
    """None where pytest was not started by run.py."""

    def __init__(self, *, cluster: bool = False) -> None:
        for name in (*_IMPORTED, *(_IN_A_CLUSTER if cluster else ())):
            importlib.import_module(name)
        for name in _OF_ITS_LIBRARY if cluster else ():
            importlib.import_module("multus.kube.library").load(name)
        self._socket, theirs = socket.socketpair()
        if os.fork() == 0:
            self._socket.close()
            _serve(theirs)
        theirs.close()

    def start(self, *arguments: str, log: Path, env: Mapping[str, str]) -> Daemon:
        """multusd with these arguments; what it says goes to the log."""
        self._socket.sendall(json.dumps([arguments, str(log), dict(env)]).encode())
        return Daemon(int(self._socket.recv(32)))

    def close(self) -> None:
        """No more of them; those that run go on."""
        self._socket.close()


def _serve(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    while asked := connection.recv(65536):
        child = os.fork()
        if child == 0:
            connection.close()
            _become(*json.loads(asked))
        connection.sendall(str(child).encode())
    os._exit(0)


def _become(arguments: list[str], log: str, env: dict[str, Any]) -> NoReturn:
    from multus.daemon import main

    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
        os.environ.update(env)
        gc.enable()
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
