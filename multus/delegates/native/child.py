"""An interface that stands on one of the node's, made straight in the pod: macvlan, ipvlan, vlan."""

import errno
import os
from contextlib import suppress
from functools import partial

from devices.errors import KernelError
from devices.linux import link_changes, netdevs
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit


def create_child(
    kind: str, data: bytes, call: Call, visit: Visit, *, master: str, mtu: int, mac: str = ""
) -> bool | None:
    """Make the call's interface; `data` is what the kernel wants to know of its kind, `mtu` 0 the master's.

    None when it cannot be begun: without the master or the pod, or for an MTU that the master does not carry.

    :raises KernelError: the kernel refused.
    """
    found = visit.master(master)
    if found is None or mtu > found.mtu or not visit.is_possible:
        return None
    make = partial(
        link_changes.create_child,
        visit.node,
        kind=kind,
        data=data,
        master=found.index,
        namespace=visit.namespace,
        mtu=mtu,
        mac=mac,
    )
    try:
        make(name=call.ifname)
    except KernelError as error:
        if error.code != errno.EEXIST:
            raise
        # The kernel looks for the name on the node as well, where one of that name is no obstacle.
        name = f"veth{os.urandom(4).hex()}"
        make(name=name)
        _rename(kind, name, call, visit)
    return True


def _rename(kind: str, name: str, call: Call, visit: Visit) -> None:
    made = link_changes.find(visit.pod, name)
    assert made is not None
    try:
        netdevs.change(visit.pod, made.index, netdevs.Change(name=call.ifname))
    except KernelError as error:
        with suppress(KernelError):
            link_changes.delete(visit.pod, name)
        what = f'failed to rename {kind} to "{call.ifname}"'
        raise KernelError(what, error.code, error.reason) from None
