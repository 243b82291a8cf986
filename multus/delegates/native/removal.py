"""Interfaces of one pod removed together: the kernel waits for its readers once, not once for each.

Of eight interfaces one after another each takes 20 ms or more, all of them together not much longer than one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import anyio.to_thread

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux import link_changes, netns
from multus.cni.errors import Code
from multus.delegates.plugin import Call, PluginError
from multus.errors import MultusError

After = Callable[[], None]
"""Blocks, and raises MultusError when it fails."""

_GATHER: Final = 0.005  # seconds that the first waits for others that are announced


class _Pod:
    """Removals of one pod: how many are announced, and which wait to be carried out."""

    def __init__(self) -> None:
        self.announced = 0
        self.batch: _Batch | None = None


class _Batch:
    """Interfaces that are removed together, and what is done after that; `failed` holds those that were not."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.after: list[tuple[str, After]] = []
        self.full = anyio.Event()
        self.done = anyio.Event()
        self.failed: dict[str, DeviceError | MultusError] = {}


class Removals:
    """Carries out removals; `remove_all` is what does it, in a thread."""

    def __init__(self, remove_all: "Callable[[str, set[str]], dict[str, DeviceError]] | None" = None) -> None:
        self._remove_all = remove_all or remove_together
        self._pods: dict[str, _Pod] = {}

    @contextmanager
    def announced(self, path: str) -> Iterator[None]:
        """While a removal in that namespace is going to come, or is in work, so that others wait for it a moment."""
        pod = self._pods.setdefault(path, _Pod())
        pod.announced += 1
        try:
            yield
        finally:
            pod.announced -= 1
            _fill(pod)
            if not pod.announced:
                del self._pods[path]

    async def remove(self, plugin: str, call: Call, *, after: "After | None" = None) -> None:
        """Remove the call's interface, if it and the pod are there, then do what comes `after`, whatever came of that.

        It has to be announced.

        :raises PluginError: the kernel refused; and what `after` raises.
        """
        pod = self._pods[call.netns]
        batch, first = pod.batch, pod.batch is None
        if batch is None:
            batch = pod.batch = _Batch()
        batch.names.add(call.ifname)
        if after is not None:
            batch.after.append((call.ifname, after))
        _fill(pod)
        if first:
            with anyio.CancelScope(shield=True):  # the others rely on it, and it is short
                await self._carry_out(call.netns, pod, batch)
        else:
            await batch.done.wait()
        error = batch.failed.get(call.ifname)
        if isinstance(error, MultusError):
            raise error
        if error is not None:
            raise PluginError(plugin, call.command, Code.INTERNAL, error.message, hint=error.hint)

    async def _carry_out(self, path: str, pod: _Pod, batch: _Batch) -> None:
        with anyio.move_on_after(_GATHER):
            await batch.full.wait()
        pod.batch = None
        batch.failed = dict.fromkeys(batch.names, KernelError("removing interfaces", 0, "it was not carried out"))
        try:
            batch.failed = await anyio.to_thread.run_sync(self._remove_and_after, path, batch)
        finally:
            batch.done.set()

    def _remove_and_after(self, path: str, batch: _Batch) -> dict[str, DeviceError | MultusError]:
        failed: dict[str, DeviceError | MultusError] = {}
        try:
            failed.update(self._remove_all(path, batch.names))
        except DeviceError as error:
            failed = dict.fromkeys(batch.names, error)
        for name, after in batch.after:
            try:
                after()
            except MultusError as error:
                failed.setdefault(name, error)
        return failed


def remove_together(path: str, names: set[str]) -> dict[str, DeviceError]:
    """Remove the interfaces of a namespace; those that were not, with why. One that is not there is no failure.

    :raises DeviceError: nothing could be removed.
    """
    try:
        connection = netns.open_socket(path)
    except NamespaceError as error:
        if error.gone:
            return {}
        raise
    failed: dict[str, DeviceError] = {}
    with connection:
        if len(names) > 1 and link_changes.delete_all(connection, names):
            return {}
        for name in sorted(names):
            try:
                link_changes.delete(connection, name)
            except DeviceError as error:
                failed[name] = error
    return failed


def _fill(pod: _Pod) -> None:
    """Let the first go on when all that are announced have come."""
    if pod.batch is not None and len(pod.batch.names) >= pod.announced:
        pod.batch.full.set()
