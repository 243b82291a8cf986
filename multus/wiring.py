"""The daemon's parts, made and joined: what is there, who knows whom. Nothing here runs yet."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio

from devices.linux.vf_kernel import LinuxKernel
from dpdk.drivers import Binder
from dpdk.kernel import Kernel
from multus import confdir
from multus.assignments import Assignments, KubeletAssignments, NoAssignments, PoolAssignments
from multus.attach import Attacher, unmeasured
from multus.byhand import ByHand
from multus.commands import Commands
from multus.delegates.chain import Chain
from multus.delegates.native.registry import ORDERLESS, chosen, native_delegates
from multus.delegates.passthru import passthru
from multus.delegates.plugin import Runner
from multus.delegates.sriov import Sriov
from multus.drills import from_environment
from multus.errors import Fault, MultusError
from multus.hardware import make_by_hand, make_manager, make_policies
from multus.hotplug import Hotplug
from multus.journal import Journal
from multus.kube.cluster import Cluster, NoCluster
from multus.pod_names import pod_names
from multus.ports import Ports
from multus.reload import Reloader
from multus.resolve import Resolver
from multus.sandbox import Sandbox
from multus.settings import DaemonSettings
from multus.slots import Lanes, Slots
from multus.upkeep import Upkeep

if TYPE_CHECKING:
    from devices.manager import Manager
    from multus.kube.claims import Claims
    from multus.metrics import Metrics
    from multus.policies import Policies

logger = logging.getLogger(__name__)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class DaemonError(MultusError):
    """The daemon cannot start."""

    fault: ClassVar[Fault] = Fault.OPERATOR


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the daemon runs; `manager`, `policies` and `metrics` are None on a node without them.

    `pool` gives devices out where no kubelet does. `binder` is the one that changes drivers of VFs, for whomever.
    """

    cluster: Cluster
    journal: Journal
    slots: Slots
    upkeep: Upkeep
    commands: Commands
    hotplug: Hotplug
    binder: Binder
    manager: "Manager | None"
    policies: "Policies | None"
    pool: PoolAssignments | None
    by_hand: ByHand
    metrics: "Metrics | None"


async def wire(reloader: Reloader, stack: AsyncExitStack, *, env: Mapping[str, str]) -> Parts:
    """The parts for the settings as they are now; what they keep open closes with `stack`.

    :raises MultusError: one of them cannot be had.
    """
    settings = reloader.current
    boot_id = (await anyio.Path(_BOOT_ID).read_text(encoding="ascii")).strip()
    metrics = _metrics(settings)
    cluster, claims = await _cluster(settings, stack, metrics)
    journal = await stack.enter_async_context(Journal.open(Path(settings.cni_dir) / "journal.db"))
    step = from_environment(env)
    slots, lanes = Slots(settings.max_concurrent_delegates), Lanes()
    reloader.on_change(lambda old, new: slots.resize(new.max_concurrent_delegates - old.max_concurrent_delegates))
    binder = Binder(Kernel(pod_name=pod_names(Path(settings.cni_dir) / "journal.db")), journal.records)
    chain = _chain(lambda: reloader.current, journal, boot_id, binder)
    devinfo_dir = Path(settings.device_info_dir)
    measure = metrics.delegate if metrics else unmeasured
    deadline = settings.delegate_timeout + 10
    attacher = Attacher(
        chain,
        slots,
        devinfo_dir=devinfo_dir,
        deadline=deadline,
        step=step,
        measure=measure,
        half_done=journal.half_done,
    )
    manager = make_manager(settings, journal)
    policies = await make_policies(settings, journal, manager, binder=binder)
    assignments = _assignments(settings, claims, manager, journal)
    pool = assignments if isinstance(assignments, PoolAssignments) else None
    ports = Ports(journal.records, devinfo_dir)

    async def removed(sandbox: Sandbox) -> None:
        await ports.removed(sandbox)
        if pool is not None:
            await pool.removed(sandbox)

    upkeep = Upkeep(
        journal=journal,
        attacher=attacher,
        chain=chain,
        lanes=lanes,
        cluster=cluster,
        boot_id=boot_id,
        removed=removed,
    )
    resolver = Resolver(
        cluster=cluster,
        assignments=assignments,
        files=confdir.Files(),
        sequential=lambda: reloader.current.attach_order == "sequential",
        device_info_dir=settings.device_info_dir,
    )
    commands = Commands(
        settings=lambda: reloader.current,
        resolver=resolver,
        journal=journal,
        attacher=attacher,
        chain=chain,
        lanes=lanes,
        upkeep=upkeep,
        cluster=cluster,
        devinfo_dir=devinfo_dir,
        boot_id=boot_id,
        step=step,
        ports=ports,
    )
    return Parts(
        cluster=cluster,
        journal=journal,
        slots=slots,
        upkeep=upkeep,
        commands=commands,
        hotplug=Hotplug(journal=journal, attacher=attacher, chain=chain, slots=slots, lanes=lanes),
        binder=binder,
        manager=manager,
        policies=policies,
        pool=pool,
        by_hand=make_by_hand(settings, journal, manager),
        metrics=metrics,
    )


def _chain(settings: Callable[[], DaemonSettings], journal: Journal, boot_id: str, binder: Binder) -> Chain:
    runner = Runner(chroot=settings().chroot_dir, timeout=lambda: settings().delegate_timeout)
    sriov = Sriov(runner, journal.records, LinuxKernel(), boot_id=boot_id, binder=binder)
    types = chosen(settings().native_delegates, bin_dir=settings().chroot_dir + settings().bin_dir)
    native = native_delegates(types, runner, root=settings().chroot_dir)
    return Chain(
        runner,
        in_process={"passthru": passthru, "sriov": sriov, **native},
        bin_dirs=lambda: (settings().bin_dir,),
        orderless=ORDERLESS & native.keys(),
    )


def _assignments(
    settings: DaemonSettings, claims: "Claims | None", manager: "Manager | None", journal: Journal
) -> Assignments:
    """Devices come from the kubelet where there is one, as under an API server; a folder of YAML has none."""
    if settings.manifests:
        return PoolAssignments(manager, journal.all, grace=settings.add_timeout + 10) if manager else NoAssignments()
    return KubeletAssignments(Path(settings.kubelet_dir), claims)


def _metrics(settings: DaemonSettings) -> "Metrics | None":
    if not settings.metrics_port:
        return None
    from multus.metrics import Metrics

    return Metrics()


async def _cluster(
    settings: DaemonSettings, stack: AsyncExitStack, metrics: "Metrics | None" = None
) -> tuple[Cluster, "Claims | None"]:
    """The cluster as configured; the libraries of one that is not used are not even imported."""
    if settings.manifests:
        from multus.kube.folder import FolderCluster

        return FolderCluster(Path(settings.manifests), node=settings.node_name), None
    if settings.kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST"):
        from multus.kube.api import Api
        from multus.kube.live import LiveCluster

        if not settings.node_name:
            raise DaemonError(
                "the node's name is not known",
                hint='set "nodeName" in the configuration, or MULTUS_NODE_NAME from spec.nodeName in the DaemonSet',
            )
        api = await stack.enter_async_context(Api.open(settings.kubeconfig))
        if metrics:
            api.observe = metrics.requested
        live = LiveCluster(api, settings.node_name)
        return live, live
    logger.warning("neither kubeconfig nor manifests is set: pods get the node's networks, and no others")
    return NoCluster(), None
