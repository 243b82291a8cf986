"""What a pod asks for that DPDK needs: hugepages by NUMA node, and what it lacks before it even starts. Pure."""

import re
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Final

from dpdk.eal import Port
from dpdk.errors import DpdkError
from dpdk.hugepages import Pages, parse_size, size_text
from multus.kube.limits import Limits
from multus.kube.objects import Pod

_HUGEPAGES: Final = "hugepages-"
_AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{0,9})?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|)")
_UNITS: Final = {
    "": 1,
    **{unit: 1000 ** (index + 1) for index, unit in enumerate("kMGTPE")},
    **{f"{unit}i": 1024 ** (index + 1) for index, unit in enumerate("KMGTPE")},
}
_MB: Final = 1024 * 1024


def container_of(pod: Pod, resources: Collection[str]) -> Limits | None:
    """The container that the devices of these resources are for; None when it cannot be told."""
    return next((each for each in pod.limits if not resources or not each.amounts.keys().isdisjoint(resources)), None)


def memory_mb(limits: Limits | None, ports: Iterable[Port]) -> dict[int, int]:
    """The hugepage memory to be taken, all on the NUMA node of the ports; nothing when they are on several."""
    nodes = {max(port.numa, 0) for port in ports}
    total = sum(_hugepages(limits).values()) // _MB
    return {nodes.pop(): total} if len(nodes) == 1 and total else {}


def lacking(limits: Limits | None, ports: Sequence[Port], pages: Sequence[Pages]) -> tuple[str, ...]:
    """A sentence for each thing for which DPDK will not work there; `pages` are the node's."""
    if limits is None or not ports:
        return ()
    found = []
    name, asked = f"container {limits.container}", _hugepages(limits)
    if not asked:
        found.append(f"{name} has no hugepages: give it limits of hugepages-2Mi or hugepages-1Gi, and as many requests")
    for size_kb, amount in asked.items():
        there = sum(each.total for each in pages if each.size_kb == size_kb) * size_kb // 1024
        if there < amount // _MB:
            size = size_text(size_kb)
            found.append(
                f"{name} may have {amount // _MB} MiB in hugepages of {size}, and the node has {there}: "
                f"`multusctl dpdk hugepages --size {size} --count N`"
            )
    for node in sorted({port.numa for port in ports if port.numa >= 0}) if asked else ():
        local = sum(each.free for each in pages if each.size_kb in asked and each.node in {node, -1})
        if not local:
            on = ", ".join(port.interface for port in ports if port.numa == node)
            found.append(f"NUMA node {node}, which {on} is on, has no free hugepage of what {name} asks for")
    if not limits.locks and any(port.driver == "vfio-pci" for port in ports):
        found.append(f"{name} may not lock memory for DMA: add the capability IPC_LOCK")
    return tuple(found)


def _hugepages(limits: Limits | None) -> dict[int, int]:
    """Bytes by page size in KiB; what cannot be understood is left out, as the API server would refuse it."""
    found = {}
    for name, text in limits.amounts.items() if limits is not None else ():
        if not name.startswith(_HUGEPAGES):
            continue
        amount = _AMOUNT.fullmatch(text)
        try:
            size = parse_size(name.removeprefix(_HUGEPAGES))
        except DpdkError:
            continue
        if amount is not None and size and (total := int(Decimal(amount[1]) * _UNITS[amount[2]])):
            found[size] = total
    return found
