"""The `passthru` plugin, done in process: adds nothing, so that a chain can be made of what is chained to it.

Upstream ships it as a binary for `auxiliaryCNIChainName`; the daemon needs none.
"""

import msgspec

from multus.cni.request import Command
from multus.delegates.plugin import Call


class _Conf(msgspec.Struct, frozen=True, kw_only=True):
    cni_version: str = msgspec.field(name="cniVersion", default="0.1.0")
    prev_result: msgspec.Raw = msgspec.field(name="prevResult", default=msgspec.Raw())


async def passthru(plugin: str, call: Call) -> bytes:
    """ADD answers with the previous result, or an empty one; every other command does nothing."""
    if call.command is not Command.ADD:
        return b""
    conf = msgspec.json.decode(call.conf, type=_Conf)
    return bytes(conf.prev_result) or msgspec.json.encode({"cniVersion": conf.cni_version})
