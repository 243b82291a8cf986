"""An interface that stands on one of the node's, made straight in the pod: macvlan, ipvlan, vlan."""

import errno
import os
from contextlib import suppress
from functools import partial

from devices.errors import KernelError
from devices.linux import link_changes, netdevs, netns, rtnetlink
from multus.delegates.plugin import Call


def create_child(kind: str, data: bytes, call: Call, *, master: str, mtu: int, mac: str = "") -> bool | None:
    """Make the call's interface; `data` is what the kernel wants to know of its kind, `mtu` 0 the master's.

    None when it cannot be begun: without the master or the pod, or for an MTU that the master does not carry.

    :raises KernelError: the kernel refused.
    """
    with rtnetlink.connect() as connection:
        found = link_changes.find(connection, master)
        if found is None or mtu > found.mtu or netns.identity(call.netns) is None:
            return None
        try:
            namespace = os.open(call.netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        make = partial(
            link_changes.create_child,
            connection,
            kind=kind,
            data=data,
            master=found.index,
            namespace=namespace,
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
            _rename(kind, name, call)
        finally:
            os.close(namespace)
    return True


def _rename(kind: str, name: str, call: Call) -> None:
    with netns.open_socket(call.netns) as inside:
        made = link_changes.find(inside, name)
        assert made is not None
        try:
            netdevs.change(inside, made.index, netdevs.Change(name=call.ifname))
        except KernelError as error:
            with suppress(KernelError):
                link_changes.delete(inside, name)
            what = f'failed to rename {kind} to "{call.ifname}"'
            raise KernelError(what, error.code, error.reason) from None
