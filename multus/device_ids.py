"""The PCI addresses that an attachment is about, also where no resource gave it one, and where a record is damaged."""

import re
from typing import Final

from devices.linux.pci_address import parse_address
from multus.sandbox import Attachment

_KEYS: Final = re.compile(
    rb'"(?:deviceID|pciBusID|pciID|pci-address)"\s*:\s*"((?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7])"'
)


def device_ids(item: Attachment) -> set[str]:
    """What the daemon gave it, what its configuration names, and what its results report.

    Looked for in the bytes: what cannot be parsed any more still says which device is taken.
    """
    said = (item.conf, item.result or b"", item.partial or b"")
    named = {parse_address(found.decode()) for data in said for found in _KEYS.findall(data)}
    return {item.device_id, *named} - {""}
