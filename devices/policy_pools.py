"""Policies as pools: what upstream's operator writes into config.json. Pure."""

from collections.abc import Sequence

import msgspec

from devices.inventory import Inventory
from devices.policy import by_priority, selects
from devices.policy_config import VFIO, Policy
from devices.pool_config import DEFAULT_PREFIX, Pool, PoolConfig
from devices.selectors import Ranged, Selector


def policy_pools(inventory: Inventory, policies: Sequence[Policy], *, prefix: str = DEFAULT_PREFIX) -> PoolConfig:
    """The pools of these policies on this node, one a resource.

    The policy that counts most comes first, so that it gets the VFs that two select. Policies that select no NIC here
    make a pool all the same, an empty one: pods then see that there is none left, and not an unknown resource.
    """
    pools: dict[str, Pool] = {}
    for policy in by_priority(policies):
        fresh = Pool(
            name=policy.resource_name,
            prefix=prefix,
            selectors=_selectors(inventory, policy),
            exclude_topology=policy.exclude_topology,
        )
        first = pools.get(policy.resource_name)
        pools[policy.resource_name] = (
            fresh if first is None else msgspec.structs.replace(first, selectors=first.selectors + fresh.selectors)
        )
    return PoolConfig(pools=tuple(pools.values()))


def joined(file: PoolConfig, policies: PoolConfig) -> PoolConfig:
    """The pools of a file, and after them those of policies; of one resource, the file's."""
    known = {pool.resource for pool in file.pools}
    twice = [
        f"{pool.resource} is a pool of config.json already: that of a policy is left out"
        for pool in policies.pools
        if pool.resource in known
    ]
    return PoolConfig(
        pools=(*file.pools, *(pool for pool in policies.pools if pool.resource not in known)),
        warnings=(*file.warnings, *policies.warnings, *twice),
    )


def _selectors(inventory: Inventory, policy: Policy) -> tuple[Selector, ...]:
    roots = []
    for pf in inventory.pfs:
        if selects(policy, pf):
            ranges = policy.nics.ranges(pf.netdev)
            everything = not ranges or any(not each.spans for each in ranges)
            spans = () if everything else tuple(span for each in ranges for span in each.spans)
            roots.append(Ranged(name=pf.bdf, spans=spans))
    if not roots:
        return ()
    return (
        Selector(
            root_devices=tuple(roots),
            drivers=(VFIO,) if policy.userspace else (),
            rdma=policy.rdma,
            vdpa_type=policy.vdpa_type,
            need_vhost=policy.need_vhost,
        ),
    )
