"""Which of a pod's devices goes to which of its networks.

The kubelet says which devices of a resource each container was given, and no more; a network belongs to the pod. The
order here is the one that stays the same each time it is asked for: containers as the pod lists them, and sorted within
a container, since the kubelet's order there is random.
"""

from collections.abc import Mapping, Sequence

import msgspec

from multus.networks.errors import NetworkError

Assigned = Mapping[str, Sequence[tuple[str, Sequence[str]]]]
"""Resource name to (container, its devices), in the order of the pod's containers."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What one network asks of its resource: any device, a certain one, or one of a certain container's."""

    device_id: str = ""
    container: str = ""


class DeviceShare:
    """The devices of one pod, handed out once each: one share for all networks of the pod."""

    def __init__(self, assigned: Assigned) -> None:
        self._given = {
            resource: [(container, device) for container, ids in containers for device in sorted(set(ids))]
            for resource, containers in assigned.items()
        }
        self._taken: dict[str, set[str]] = {resource: set() for resource in assigned}

    def take(self, resource: str, *, network: str, device_id: str = "", container: str = "") -> str:
        """The next device of the resource that no network has yet.

        `container` wants one of that container's, `device_id` that very one.

        :raises NetworkError: when there is none left that fits.
        """
        taken = self._taken.get(resource, set())
        for holder, device in self._given.get(resource, []):
            # A container may be given what an init container had: a device is the same in whichever list it stands.
            if device not in taken and container in ("", holder) and device_id in ("", device):
                taken.add(device)
                return device
        raise self._none_left(resource, network, device_id, container)

    def _none_left(self, resource: str, network: str, device_id: str, container: str) -> NetworkError:
        pairs = self._given.get(resource, [])
        fitting = [device for holder, device in pairs if container in ("", holder) and device_id in ("", device)]
        wanted = f"device {device_id!r:.80}" if device_id else "a device"
        where = f" of container {container!r:.80}" if container else ""
        given = len({device for _, device in pairs})
        why = "other networks have what fits" if fitting else "none of them fits" if given else "it asked for none"
        return NetworkError(
            f"network {network!r:.300} needs {wanted} of resource {resource!r:.200}{where}: "
            f"the pod was given {given} of that resource, and {why}",
            hint="the pod's containers must request as many of its devices as the pod has networks with that resource",
        )


def wished(wishes: Sequence[Wish]) -> tuple[str, ...]:
    """The devices that networks ask for by their ids."""
    return tuple(dict.fromkeys(wish.device_id for wish in wishes if wish.device_id))


def shared_out(
    containers: Sequence[str], devices: Sequence[str], wishes: Sequence[Wish]
) -> list[tuple[str, tuple[str, ...]]]:
    """Devices of one resource by the containers that networks name, and the rest as the first container's.

    No container asked for any, as there is no kubelet: a network that names one of the pod's gets one under its name.
    """
    left = sorted(devices)
    first = containers[0] if containers else ""
    found: dict[str, list[str]] = {name: [] for name in containers or ("",)}
    for wish in sorted(wishes, key=lambda each: not each.device_id):
        if wish.container in found and wish.container != first:
            fitting = [device for device in left if wish.device_id in ("", device)]
            others = wished(wishes) if not wish.device_id else ()
            free = [device for device in fitting if device not in others]
            if free:
                left.remove(free[0])
                found[wish.container].append(free[0])
    found[first] += left
    return [(name, tuple(sorted(ids))) for name, ids in found.items() if ids]
