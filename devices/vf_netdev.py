"""The interface of a VF, lent to a pod and taken back as it was. Everything blocks: call it from a worker thread."""

import contextlib
import errno
from collections.abc import Callable, Sequence
from typing import Final

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux.netdevs import Change, Netdev
from devices.vf import PAUSE, TRIES, Kernel, VFError, locate

HOST: Final = ""


def host_netdev(kernel: Kernel, name: str) -> Netdev:
    """The interface of that name on the host.

    :raises VFError: it is not there, or belongs to a bond or bridge of the node.
    :raises KernelError: the interfaces could not be listed.
    """
    all_ = kernel.netdevs(HOST)
    found = next((each for each in all_ if each.name == name), None)
    if found is None:
        raise VFError(f"the interface {name} is not on the host any more", retry=True)
    if found.master:
        master = next((each.name for each in all_ if each.index == found.master), str(found.master))
        raise VFError(
            f"{name} is part of {master} on the host", hint="a VF that the node itself uses is not given to a pod"
        )
    return found


def lend(kernel: Kernel, netdev: Netdev, netns: str, ifname: str, mac: str | None) -> Netdev:
    """Move it into the pod as `ifname`, with that MAC unless None, and up; how it is then.

    :raises DeviceError: what failed; how far it came is for `take_back` to find out.
    """
    inside = kernel.netdevs(netns)
    taken = _names(inside)
    if ifname in taken:
        raise VFError(f"the pod has an interface {ifname} already", hint="give each network another interface name")
    for altname in netdev.altnames:
        if altname == ifname or altname in taken:
            kernel.drop_altname(HOST, netdev.index, altname)
    kernel.move(HOST, netdev.index, netns, ifname)
    moved = _by_name(kernel, netns, ifname)
    kernel.prepare(netns, ifname)
    if mac is not None:
        _insist_on_mac(kernel, netns, moved.index, mac)
    kernel.change(netns, moved.index, Change(up=True))
    return _by_name(kernel, netns, ifname)


def take_back(kernel: Kernel, bdf: str, original: Netdev, netns: str, ifname: str) -> bool:
    """Bring the VF's interface back from wherever it is, and make it as it was.

    `netns` is "" when the pod's namespace is gone: the kernel then brings it back by itself, under any name, a moment
    later. False when it is nowhere to be found: it may come back yet. An `original` without index is one of which only
    name, MAC and MTU are known, or "" and 0.

    :raises DeviceError: the first failure, after everything was tried.
    """
    where, found = HOST, _on_host(kernel, bdf)
    if found is None and netns:
        where, found = netns, _in_pod(kernel, bdf, netns, ifname)
    if found is None:
        found = _awaited(kernel, bdf)
        where = HOST
    if found is None:
        return False
    if where:
        _bring(kernel, where, found, original)
        found = _on_host(kernel, bdf)
        if found is None:
            raise VFError(f"the interface of {bdf} left {netns}, but did not come to the host", retry=True)
    _as_it_was(kernel, found, original)
    return True


def find_in_pod(kernel: Kernel, bdf: str, netns: str, ifname: str) -> Netdev | None:
    """The VF's interface in the pod, whatever it is called now; None when it is not there.

    :raises DeviceError: the namespace cannot be looked into.
    """
    inside = sorted(kernel.netdevs(netns), key=lambda each: each.name != ifname)  # what is made on it may say the same
    found = next((each for each in inside if each.parent == bdf), None)
    if found is None:  # a kernel that does not tell whose interface it is
        found = next((each for each in inside if each.name == ifname and not each.parent), None)
    return found


def _on_host(kernel: Kernel, bdf: str) -> Netdev | None:
    name = locate(kernel, bdf).netdev
    return next((each for each in kernel.netdevs(HOST) if each.name == name), None) if name else None


def _in_pod(kernel: Kernel, bdf: str, netns: str, ifname: str) -> Netdev | None:
    try:
        return find_in_pod(kernel, bdf, netns, ifname)
    except NamespaceError as error:
        if error.gone:
            return None
        raise


def _awaited(kernel: Kernel, bdf: str) -> Netdev | None:
    """Namespaces are taken apart in the background."""
    for _ in range(TRIES):
        kernel.pause(PAUSE)
        found = _on_host(kernel, bdf)
        if found is not None:
            return found
    return None


def _bring(kernel: Kernel, netns: str, netdev: Netdev, original: Netdev) -> None:
    """Move it to the host. Names that it got meanwhile stay behind: one that is in use there would hold it up."""
    taken = _names(kernel.netdevs(HOST))
    for altname in netdev.altnames:
        added = original.index and altname not in original.altnames
        if added or altname in taken or altname == original.name:
            kernel.drop_altname(netns, netdev.index, altname)
    kernel.move(netns, netdev.index, HOST, original.name if original.name not in taken else _free(taken))


def _as_it_was(kernel: Kernel, netdev: Netdev, original: Netdev) -> None:
    failures: list[DeviceError] = []

    def attempt(action: Callable[[], None]) -> None:
        try:
            action()
        except DeviceError as error:
            failures.append(error)

    index = netdev.index
    rename = netdev.name != original.name
    mac = bool(original.mac.strip("0:")) and netdev.mac != original.mac  # some VFs have none before they are first up
    if netdev.up and (rename or mac):  # drivers and older kernels want it down for either
        attempt(lambda: kernel.change(HOST, index, Change(up=False)))
    if rename:
        attempt(lambda: _rename(kernel, netdev, original.name))
    if mac:
        attempt(lambda: _insist_on_mac(kernel, HOST, index, original.mac))
    if original.mtu and netdev.mtu != original.mtu:
        attempt(lambda: kernel.change(HOST, index, Change(mtu=original.mtu)))
    for altname in original.altnames:
        attempt(lambda altname=altname: _give_altname(kernel, index, altname))  # type: ignore[misc]
    now = next((each for each in kernel.netdevs(HOST) if each.index == index), None)
    if now is not None and now.up != original.up:
        attempt(lambda: kernel.change(HOST, index, Change(up=original.up)))
    if failures:
        raise failures[0]


def _rename(kernel: Kernel, netdev: Netdev, name: str) -> None:
    for attempt in range(TRIES):
        found = {each.index: each for each in kernel.netdevs(HOST)}
        now = found.pop(netdev.index, netdev)
        if name in _names(list(found.values())):
            return  # somebody else has it now: nothing on the host may lose its name for this
        if name in now.altnames:
            kernel.drop_altname(HOST, netdev.index, name)
        try:
            kernel.change(HOST, netdev.index, Change(name=name))
        except KernelError as error:
            # udev, which sees the interface come back, may have given it the name as an alternative one since.
            if error.code != errno.EEXIST or attempt + 1 == TRIES:
                raise
        else:
            return


def _give_altname(kernel: Kernel, index: int, altname: str) -> None:
    if altname not in _names(kernel.netdevs(HOST)):
        kernel.add_altname(HOST, index, altname)


def _insist_on_mac(kernel: Kernel, netns: str, index: int, mac: str) -> None:
    """A VF's driver may refuse or forget while it is being reset by its PF; after all tries it is an error.

    Some PFs (igb) let a VF that is not trusted have the MAC that was set for it, but not ask for it: it gets that when
    it is brought up and down.
    """
    problem: DeviceError | None = None
    for attempt in range(TRIES):
        if attempt:
            kernel.pause(PAUSE)
        try:
            if _has_mac(kernel, netns, index, mac):
                return
            kernel.change(netns, index, Change(mac=mac))
            problem = VFError(f"interface {index} took the MAC {mac}, but does not have it", retry=True)
        except KernelError as error:
            problem = error
            if error.code in (errno.EADDRNOTAVAIL, errno.EPERM):
                with contextlib.suppress(KernelError):
                    kernel.change(netns, index, Change(up=True))
                    kernel.change(netns, index, Change(up=False))
        if _has_mac(kernel, netns, index, mac):
            return
    assert problem is not None
    raise problem


def _has_mac(kernel: Kernel, netns: str, index: int, mac: str) -> bool:
    return any(each.index == index and each.mac == mac for each in kernel.netdevs(netns))


def _by_name(kernel: Kernel, netns: str, name: str) -> Netdev:
    found = next((each for each in kernel.netdevs(netns) if each.name == name), None)
    if found is None:
        raise VFError(f"{name} is not in the pod after it was moved there", retry=True)
    return found


def _names(netdevs: Sequence[Netdev]) -> set[str]:
    return {name for each in netdevs for name in (each.name, *each.altnames)}


def _free(taken: set[str]) -> str:
    return next(name for number in range(10_000) if (name := f"vf{number}") not in taken)
