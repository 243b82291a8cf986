"""The device manager as the daemon runs it: whether at all, with whose directories, and what it must leave alone."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc

from devices.errors import DeviceError
from multus.byhand import ByHand
from multus.device_ids import device_ids
from multus.errors import MultusError, from_devices
from multus.journal import Journal
from multus.settings import DaemonSettings

if TYPE_CHECKING:
    from devices.kubelet.podresources import PodResources
    from devices.manager import Manager
    from dpdk.drivers import Binder
    from multus.policies import Policies

logger = logging.getLogger(__name__)

UPSTREAM_CONFIG: Final = Path("/etc/pcidp/config.json")
"""Where upstream's device plugin has its configuration."""

_PATIENCE: Final = 0.5  # seconds for the kubelet's word on what pods hold: hardware's changes wait for it
_FRESH: Final = 30.0  # seconds that its last word stands


def config_path(settings: DaemonSettings, *, default: Path = UPSTREAM_CONFIG) -> Path | None:
    """The configuration of the pools; None when there are to be none.

    Without the key `deviceConfig`, upstream's file counts if there is one, and a kubelet to serve.
    """
    if settings.device_config:
        return Path(settings.device_config)
    if not settings.manifests and default.is_file() and Path(settings.kubelet_dir).is_dir():
        return default
    return None


def make_manager(settings: DaemonSettings, journal: Journal, *, default: Path = UPSTREAM_CONFIG) -> "Manager | None":
    """The device manager, or None on a node without pools: then its libraries are not even imported."""
    path = config_path(settings, default=default)
    if path is None and not has_policies(settings):
        return None
    from devices.manager import Manager

    kubelet, resources = None, None
    if not settings.manifests:
        from devices.kubelet.podresources import SOCKET, PodResources
        from devices.kubelet.registration import Kubelet

        kubelet = Kubelet(Path(settings.kubelet_dir))
        resources = PodResources(Path(settings.kubelet_dir) / SOCKET, timeout=_PATIENCE)
    pools = path or "policies"
    logger.info("device pools are those of %s%s", pools, "" if kubelet else "; there is no kubelet to offer them to")
    return Manager(
        config=path,
        info=Path(settings.device_info_dir),
        kubelet=kubelet,
        store=journal.records,
        held=InUse(journal, resources),
    )


def has_policies(settings: DaemonSettings) -> bool:
    """Whether there are policies for SR-IOV."""
    return bool(settings.policies or settings.sriov_policies)


async def make_policies(
    settings: DaemonSettings, journal: Journal, manager: "Manager | None", *, binder: "Binder | None" = None
) -> "Policies | None":
    """The policies at work, read already so that the manager begins with their pools; None on a node without any."""
    if manager is None or not has_policies(settings):
        return None
    from multus.policies import Policies

    made = Policies(manager, journal, settings, binder=binder)
    await made.load()
    return made


def make_by_hand(settings: DaemonSettings, journal: Journal, manager: "Manager | None") -> ByHand:
    """What answers `multusctl vf`."""
    return ByHand(manager, journal.all, kubelet_dir=None if settings.manifests else Path(settings.kubelet_dir))


async def run_manager(
    manager: "Manager", *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Run it until cancelled.

    :raises MultusError: it cannot start.
    """
    with from_devices():
        await manager.run(task_status=task_status)


class InUse:
    """Which devices pods use: those of attachments in the journal, and those that the kubelet says containers have.

    The kubelet is asked once in a while; what it said last stands when it does not answer.
    """

    def __init__(
        self, journal: Journal, kubelet: "PodResources | None", *, clock: Callable[[], float] = anyio.current_time
    ) -> None:
        self._journal = journal
        self._kubelet = kubelet
        self._clock = clock
        self._asked = float("-inf")
        self._told: dict[str, str] = {}

    async def __call__(self) -> dict[str, str]:
        """Devices, each with its resource; whatever else the kubelet's containers hold is among them.

        :raises DeviceError: the journal cannot be read.
        """
        try:
            sandboxes = await self._journal.all()
        except MultusError as error:
            raise DeviceError(error.message, hint=error.hint) from error
        items = (item for sandbox in sandboxes for item in sandbox.attachments)
        attached = {bdf: item.resource for item in items for bdf in device_ids(item)}
        return attached | await self._of_containers()

    async def _of_containers(self) -> dict[str, str]:
        if self._kubelet is None or self._clock() - self._asked < _FRESH:
            return self._told
        try:
            pods = await self._kubelet.pods()
        except DeviceError as error:
            logger.debug("what containers hold is not known anew: %s", error)
        else:
            self._told = {
                device: each.resource
                for pod in pods
                for container in pod.containers
                for each in container.devices
                for device in each.ids
            }
        self._asked = self._clock()
        return self._told
