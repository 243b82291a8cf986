"""Which devices of the node's own pools a pod would be given now, for `multusctl explain`. Nothing is given."""

from collections.abc import Sequence

from devices.errors import DeviceError
from devices.ledger import Memory
from multus.assignments import Wishes, pod_owner
from multus.cli.places import Places
from multus.cli.vf_direct import Direct
from multus.kube.objects import Pod
from multus.networks.devices import Assigned, shared_out, wished


class Preview:
    """Assignments of a node without a kubelet, as they would be if the pods came now, one after another."""

    def __init__(self, where: Places) -> None:
        self._where = where
        self._source: Direct | None = None
        self._told: list[str] = []

    async def devices(self, pod: Pod, resources: Wishes) -> Assigned:
        """What the daemon would give; what it would refuse is `told` instead.

        :raises MultusError: the configuration or the journal cannot be used. :raises DeviceError: likewise.
        """
        if self._where.pools is None and not (self._where.settings.policies or self._where.settings.sriov_policies):
            return {}
        source = self._source
        if source is None:
            source = self._source = Direct(self._where, Memory())
            await source.remember()
            source.make_pools()
        owner = pod_owner(pod.namespace, pod.name, pod.uid)
        assigned: dict[str, Sequence[tuple[str, Sequence[str]]]] = {}
        for resource, wishes in sorted(resources.items()):
            try:
                given = await source.choose(resource, len(wishes), owner=owner, wanted=wished(wishes))
            except DeviceError as error:
                self._told.append(str(error))
                continue
            await source.note(owner, resource, given)
            assigned[resource] = shared_out(pod.containers, given, wishes)
        return assigned

    def told(self) -> tuple[str, ...]:
        """Why devices of the last pod would not be given."""
        told, self._told = tuple(self._told), []
        return told
