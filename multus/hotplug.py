"""One more network for a running pod, or one less: what the hot-plug controller asks for by /delegate.

The attachment is journalled beside those of the ADD, so that the pod's DEL takes it down as well. The configuration is
the network's own: nothing of the daemon's settings is put over it.
"""

import logging

import anyio
import anyio.to_thread
import msgspec

from multus.adding import look_into
from multus.attach import Attacher
from multus.cni.conf import NetworkConf, encode_conf, parse_conf, refuse_recursion, with_cni_args
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command, PodRef, Request, delegate_args, parse_request
from multus.cni.result import encode_result
from multus.delegates.chain import Chain, Target
from multus.errors import MultusError, from_devices
from multus.journal import Journal
from multus.networks.selection import check_attributes
from multus.sandbox import Attachment, Sandbox, State
from multus.slots import Lanes, Priority, Slots
from multus.upstream import InterfaceAttributes

logger = logging.getLogger(__name__)

_WHERE = "the network's configuration"


class Hotplug:
    """Carries out calls for one interface of a pod that is attached already."""

    def __init__(self, *, journal: Journal, attacher: Attacher, chain: Chain, slots: Slots, lanes: Lanes) -> None:
        self._journal = journal
        self._attacher = attacher
        self._chain = chain
        self._slots = slots
        self._lanes = lanes

    async def call(self, env: dict[str, str], data: bytes, attributes: InterfaceAttributes) -> bytes:
        """One CNI command for one interface: what goes to stdout.

        :raises MultusError: for anything that went wrong.
        """
        request = parse_request(env, data)
        conf = parse_conf(data, where=_WHERE)
        refuse_recursion(conf)
        if request.command is Command.STATUS:
            await self._chain.status(conf, request.path)
            return b""
        if request.command is Command.ADD:
            # The pod's DEL calls it off, as it does the pod's ADD: it has more to take down than to wait for.
            async with self._lanes.adding(request.container_id):
                return await self._plug(request, conf, attributes)
        async with self._lanes.holding(request.container_id):
            sandbox, item = await self._find(request)
            match request.command:
                case Command.DEL:
                    with anyio.CancelScope(shield=True):
                        await self._unplug(sandbox, item, request)
                case Command.CHECK:
                    if item is None:
                        raise CNIError(
                            Code.UNKNOWN_CONTAINER, f"container {request.container_id} has no {request.ifname}"
                        )
                    await self._attacher.check(msgspec.structs.replace(sandbox, attachments=(item,)))
                case _:
                    raise CNIError(Code.INVALID_ENVIRONMENT, f"{request.command} is not for one interface")
        return b""

    async def _find(self, request: Request) -> tuple[Sandbox, Attachment | None]:
        """The sandbox that has the interface, with its attachment, else the container's first."""
        attached = [
            each for each in await self._journal.container(request.container_id) if each.state is State.ATTACHED
        ]
        for sandbox in attached:
            for item in sandbox.attachments:
                if item.ifname == request.ifname:
                    return sandbox, item
        if attached:
            return attached[0], None
        if request.command is Command.DEL:
            unknown = Sandbox(
                container_id=request.container_id,
                ifname="",
                state=State.DELETING,
                netns=request.netns,
                netns_id="",
                boot_id="",
                pod_namespace="",
                pod_name="",
                pod_uid="",
            )
            return unknown, None
        raise CNIError(
            Code.UNKNOWN_CONTAINER,
            f"container {request.container_id} has no networks from this daemon",
            hint="a network can be plugged into a pod only after the pod's own ADD",
        )

    async def _plug(self, request: Request, conf: NetworkConf, attributes: InterfaceAttributes) -> bytes:
        sandbox, known = await self._find(request)
        if known is not None:
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"container {request.container_id} already has {request.ifname}: it is {known.network!r}",
                hint="unplug it first, or choose another interface name",
            )
        with from_devices():
            identity, names = await anyio.to_thread.run_sync(look_into, sandbox.netns)
        if identity is None or identity != (sandbox.netns_id or identity):
            raise CNIError(
                Code.UNKNOWN_CONTAINER,
                f"container {request.container_id}: its network namespace {sandbox.netns} is gone",
                hint="the pod has ended, or is about to",
            )
        if request.ifname in names:
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"interface name {request.ifname} already exists in the pod",
            )
        mac, ips = check_attributes(attributes.mac, attributes.ips)
        if attributes.cni_args:
            conf = with_cni_args(conf, attributes.cni_args)
        pod = PodRef(namespace=sandbox.pod_namespace, name=sandbox.pod_name, uid=sandbox.pod_uid)
        runtime = {key: value for key, value in (("ips", list(ips)), ("mac", mac)) if value}
        item = Attachment(
            position=max(each.position for each in sandbox.attachments) + 1,
            network=conf.name,
            ifname=request.ifname,
            conf=encode_conf(conf),
            args=delegate_args(pod, request.args, mac=mac, ips=ips),
            runtime=runtime,
            hotplug=True,
            after=(0,),
        )
        try:
            await self._journal.plugged(sandbox.key, item)
            async with self._slots.hold(Priority.ADD):
                result = await self._attacher.attach_one(sandbox, item, conf)
            await self._journal.recorded(sandbox.key, item.position, encode_result(result, "1.1.0"))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo(sandbox, item)
            raise
        return encode_result(result, conf.cni_version)

    async def _undo(self, sandbox: Sandbox, item: Attachment) -> None:
        with_item = msgspec.structs.replace(sandbox, attachments=(*sandbox.attachments, item))
        try:
            await self._attacher.take_down(with_item, only=[item.position])
            await self._journal.unplugged(sandbox.key, item.position)
        except (
            MultusError
        ) as error:  # the row without a result says so: it is undone with the pod, or at the next start
            logger.error("container %s: plugging %s is not undone yet: %s", sandbox.container_id, item.ifname, error)

    async def _unplug(self, sandbox: Sandbox, item: Attachment | None, request: Request) -> None:
        if item is None:  # unplugged already, or by somebody before us: the plugins are asked all the same
            target = Target(
                container_id=request.container_id,
                netns=sandbox.netns,
                ifname=request.ifname,
                args=delegate_args(None, request.args),
                runtime={},
            )
            async with self._slots.hold(Priority.DELETE):
                await self._chain.delete(parse_conf(request.conf, where=_WHERE), target, None)
            return
        if item.position == 0:
            raise CNIError(
                Code.INVALID_ENVIRONMENT, f"{item.ifname} is the pod's default network: it cannot be unplugged"
            )
        await self._attacher.take_down(sandbox, only=[item.position])
        await self._journal.unplugged(sandbox.key, item.position)
