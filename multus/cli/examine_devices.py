"""What `multusctl doctor` finds about other programs that give out this node's devices. Changes nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from devices import inventory, vhost
from devices.errors import DeviceError
from devices.kubelet.service import PLUGINS, WATCHED
from devices.kubelet.sockets import listener, rivals, socket_name
from devices.linux.sysfs import Sysfs
from devices.pool_config import Pool
from multus.cli.examine import Finding
from multus.cli.places import of_settings, read_pools
from multus.settings import DaemonSettings


def device_plugins(settings: DaemonSettings) -> Iterator[Finding]:
    """Whether another device plugin, such as upstream's, works beside the daemon's pools.

    :raises MultusError: policies cannot be used.
    """
    where = of_settings(settings)
    if settings.manifests or (where.pools is None and not (settings.policies or settings.sriov_policies)):
        return  # pods get their devices from another plugin, as they should
    try:
        sysfs = Sysfs(where.sysfs)
        pools = read_pools(where, inventory.build(sysfs.read(), guarded={})).pools
    except DeviceError as error:
        yield Finding(level="wrong", what=f"pools: {error.message}", advice=error.hint)
        return
    yield Finding(what=f"{len(pools)} pools: {', '.join(pool.resource for pool in pools) or 'none'}")
    yield from _vhost(pools, sysfs)
    directories = [Path(settings.kubelet_dir) / name for name in (PLUGINS, WATCHED)]
    mine = {socket_name(pool.resource, directory): pool.resource for pool in pools for directory in directories}
    daemon = listener(settings.socket_path)
    for rival in rivals(directories, {pool.prefix for pool in pools}, own=(daemon,)):
        resource = mine.get(rival.path.name)
        if resource is not None:
            what = f"another device plugin serves {resource} on {rival}: multusd leaves it to that one"
        else:
            what = f"another device plugin is at work, {rival}: what its pools and ours both select is given out twice"
        advice = (
            "take that plugin (upstream's: kube-sriov-device-plugin) off this node, or its devices out of deviceConfig"
        )
        yield Finding(level="wrong", what=what, advice=advice)


def _vhost(pools: Sequence[Pool], sysfs: Sysfs) -> Iterator[Finding]:
    """Whether the host has what pools with needVhostNet are to give."""
    needing = [pool.resource for pool in pools if any(selector.need_vhost for selector in pool.selectors)]
    absent = vhost.missing(sysfs) if needing else ()
    if absent:
        what = f"needVhostNet of {', '.join(needing)}: this host has no {' and no '.join(absent)}, pods start without"
        yield Finding(level="wrong", what=what, advice=vhost.advice(absent))
