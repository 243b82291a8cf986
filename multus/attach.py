"""The async core: carries a plan out, and takes down what stands.

In which order networks are attached, and which of them together, is in `multus.attaching`. After a failure the caller
takes everything down, in reverse. Taking down goes on past failures and says what could not be done.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.to_thread

from devices.linux.netns import identity, interface_names
from multus import devinfo
from multus.attaching import AttachError, Attaching
from multus.cni.conf import NetworkConf, parse_conf
from multus.cni.result import SUPPORTED, Result, encode_result, parse_result
from multus.delegates.chain import NOTHING, Begin, Chain, Stretch, Target
from multus.delegates.plugin import PluginError
from multus.delegates.visit import Visit
from multus.errors import Fault, MultusError, from_devices
from multus.sandbox import Attachment, Sandbox
from multus.slots import Priority, Queue, Slots
from multus.timeline import span

logger = logging.getLogger(__name__)

__all__ = ["AttachError", "Attacher", "TakeDownError"]


Step = Callable[[str], None]
"""Told the name of every step that is about to be irrevocable; drills end the process there."""

Measure = Callable[[str, str, str], AbstractContextManager[Callable[[], None]]]
"""Makes a block around one network's ADD or DEL: (command, network, the type of its first plugin).

It gives the block what it calls if it was only a part.
"""


def unmeasured(command: str, network: str, kind: str) -> AbstractContextManager[Callable[[], None]]:
    """Nobody looks."""
    return nullcontext(lambda: None)


HalfDone = Callable[[tuple[str, str], int, bytes], Awaitable[None]]
"""Told what the plugins of an attachment have come to: the sandbox's key, its position, a CNI result."""


async def forgotten(key: tuple[str, str], position: int, result: bytes) -> None:
    """Nobody keeps it."""


class TakeDownError(MultusError):
    """Some of a sandbox's networks could not be taken down; the journal keeps it until they are."""

    fault: ClassVar[Fault] = Fault.PEER
    retry: ClassVar[bool] = True

    def __init__(self, failures: Sequence[tuple[Attachment, Exception]]) -> None:
        super().__init__(
            "errors: " + " / ".join(f"{item.network} ({item.ifname}): {error}" for item, error in failures)
        )


class Attacher:
    """Runs delegates for sandboxes. `deadline` is how long one whole take-down may last, in seconds."""

    def __init__(
        self,
        chain: Chain,
        slots: Slots,
        *,
        devinfo_dir: Path,
        deadline: float,
        step: Step,
        measure: Measure = unmeasured,
        half_done: HalfDone = forgotten,
    ) -> None:
        self._chain = chain
        self._slots = slots
        self._devinfo = devinfo_dir
        self._deadline = deadline
        self._step = step
        self._measure = measure
        self._half_done = half_done
        self._queue = Queue()

    async def attach(self, sandbox: Sandbox, confs: Mapping[int, NetworkConf], results: dict[int, Result]) -> None:
        """Attach every network of the sandbox; `results` get each one's by position, also when others fail.

        :raises AttachError: for the first network that failed. Nothing is undone here: see `take_down`.
        """
        await Attaching(
            sandbox,
            results,
            begin=lambda item: self._chain.begin(confs[item.position], _target(sandbox, item, sandbox.netns)),
            visit=lambda item, work, visit: self._attach_there(item, confs[item.position], work, visit),
            finish=lambda item, begun: self.attach_one(sandbox, item, confs[item.position], begun),
            slots=self._slots,
            queue=self._queue,
        ).run()

    def _attach_there(self, item: Attachment, conf: NetworkConf, work: Begin, visit: Visit) -> Stretch:
        """Attach one network, as far as that can be done on a visit to the pod; blocks."""
        if item.device_info:
            devinfo.publish(self._devinfo, item.resource, item.device_id, item.device_info)
        self._step(f"add:start:{item.position}")
        with self._measure("ADD", item.network, _kind(conf)) as forget, span("network", item.network, item.ifname):
            stretch = work(visit)
            if not stretch.is_whole:
                forget()
        if stretch.is_whole:
            self._step(f"add:done:{item.position}")
        return stretch

    async def attach_one(
        self, sandbox: Sandbox, item: Attachment, conf: NetworkConf, begun: Stretch = NOTHING
    ) -> Result:
        """Attach one network, all of it or what is left of it."""
        if item.device_info and not begun.plugins:
            await anyio.to_thread.run_sync(
                devinfo.publish, self._devinfo, item.resource, item.device_id, item.device_info
            )
        self._step(f"add:start:{item.position}")
        with self._measure("ADD", item.network, _kind(conf)), span("network", item.network, item.ifname):
            note = partial(self._note, sandbox.key, item.position)
            result = await self._chain.add(conf, _target(sandbox, item, sandbox.netns), note=note, begun=begun)
        self._step(f"add:done:{item.position}")
        return result

    async def _note(self, key: tuple[str, str], position: int, result: Result) -> None:
        """Some plugins, as firewall, undo nothing without a result: a crash of this process must not lose it."""
        await self._half_done(key, position, encode_result(result, SUPPORTED[-1]))

    async def take_down(self, sandbox: Sandbox, only: Iterable[int] | None = None) -> None:
        """Delete every attachment (or `only` those positions), and go on past failures.

        Dependents first, unless neither minds: the kernel removes a pod's interfaces together in the time of one.

        Cannot be cancelled, and ends by its deadline.

        :raises TakeDownError: naming each network that could not be deleted.
        """
        chosen = [item for item in sandbox.attachments if only is None or item.position in set(only)]
        with from_devices():
            netns = await anyio.to_thread.run_sync(_live_netns, sandbox)
        finished = {item.position: anyio.Event() for item in chosen}
        orderless = {item.position for item in chosen if self._is_orderless(item)}
        failures: dict[int, tuple[Attachment, Exception]] = {}

        async def run(item: Attachment) -> None:
            for other in chosen:
                if item.position in other.after and not {item.position, other.position} <= orderless:
                    await finished[other.position].wait()
            try:
                with anyio.fail_after(self._deadline):
                    async with self._slots.hold(Priority.DELETE):
                        await self._take_down_one(sandbox, item, netns)
            except TimeoutError:
                failures[item.position] = item, TimeoutError(f"not done after {self._deadline:g} s")
            except MultusError as error:
                failures[item.position] = item, error
            finished[item.position].set()

        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for item in chosen:
                    group.start_soon(run, item, name=f"detach {item.network}")
        if failures:
            raise TakeDownError([failures[position] for position in sorted(failures, reverse=True)])

    def _is_orderless(self, item: Attachment) -> bool:
        try:
            return self._chain.is_orderless(parse_conf(item.conf, where=f"journal of {item.network}"))
        except MultusError:  # its own take-down tells of it
            return False

    async def _take_down_one(self, sandbox: Sandbox, item: Attachment, netns: str) -> None:
        conf = parse_conf(item.conf, where=f"journal of {item.network}")
        known = item.result or item.partial
        previous = parse_result(known, where="journal") if known else None
        self._step(f"del:start:{item.position}")
        target = _target(sandbox, item, netns)
        try:
            with self._measure("DEL", item.network, _kind(conf)), span("removal", item.network, item.ifname):
                await self._chain.delete(conf, target, previous)
        except PluginError as error:
            if item.result is not None or await _stands(item, netns):
                raise
            # Its ADD did not succeed, and there is no such interface. A plugin that cannot even begin its DEL, as
            # macvlan without its master, would be asked for ever, once for every try to start the pod.
            await self._chain.release(conf, target)
            logger.warning("%s of %s: its addresses are released; %s", item.network, sandbox.container_id, error)
        if item.device_info:
            await anyio.to_thread.run_sync(devinfo.withdraw, self._devinfo, item.device_info)
        self._step(f"del:done:{item.position}")

    async def check(self, sandbox: Sandbox) -> None:
        """Run every attachment's CHECK, in order.

        :raises MultusError: of the first that has drifted.
        """
        for item in sandbox.attachments:
            if item.result is None:
                continue
            conf = parse_conf(item.conf, where=f"journal of {item.network}")
            previous = parse_result(item.result, where="journal")
            async with self._slots.hold(Priority.CHECK):
                await self._chain.check(conf, _target(sandbox, item, sandbox.netns), previous)


async def _stands(item: Attachment, netns: str) -> bool:
    """Whether the attachment's interface is in the pod."""
    if not netns:
        return False
    with from_devices():
        return item.ifname in await anyio.to_thread.run_sync(interface_names, netns)


def _kind(conf: NetworkConf) -> str:
    return conf.plugins[0].type if conf.plugins else ""


def _target(sandbox: Sandbox, item: Attachment, netns: str) -> Target:
    return Target(
        container_id=sandbox.container_id, netns=netns, ifname=item.ifname, args=item.args, runtime=item.runtime
    )


def _live_netns(sandbox: Sandbox) -> str:
    """The namespace's path, or "" where it is gone or the path now leads to somebody else's namespace."""
    if sandbox.netns and (not sandbox.netns_id or identity(sandbox.netns) == sandbox.netns_id):
        return sandbox.netns
    return ""
