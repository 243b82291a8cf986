"""CNI_ARGS: the pairs a runtime hands over, the pod they name, and the pairs a delegate gets.

Source: CNI specification 1.1, section 2 ("Parameters"); libcni's pkg/types/args.go for IgnoreUnknown. A pod's names
end up in URLs, and the pairs in another program's environment, so both are checked here, once.
"""

import re
from collections.abc import Sequence

import msgspec

from multus.cni.errors import CNIError, Code

Pairs = tuple[tuple[str, str], ...]

_POD_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.\-]{0,251}[a-zA-Z0-9])?")
_UID = re.compile(r"[a-zA-Z0-9_.\-]{0,128}")
_KNOWN_ARGS = frozenset(
    {
        "IgnoreUnknown",
        "IP",
        "MAC",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
    }
)
_TRUE, _FALSE = ("1", "true"), ("0", "false")


class PodRef(msgspec.Struct, frozen=True, kw_only=True):
    """The pod that CNI_ARGS name. `uid` and `infra_container_id` are "" when the runtime does not tell."""

    namespace: str
    name: str
    uid: str = ""
    infra_container_id: str = ""


def parse_args(text: str, *, tolerant: bool = False) -> Pairs:
    """CNI_ARGS ("K=V;K2=V2") as pairs, in order; a value runs to the next ";" and may have "=" in it.

    Raises CNIError INVALID_ENVIRONMENT for a pair without "=", and for keys that we do not know unless IgnoreUnknown
    is 1 or true. `tolerant` drops such pairs, and minds no key.
    """
    pairs: list[tuple[str, str]] = []
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if key and equals:
            pairs.append((key, value))
        elif part and not tolerant:
            raise invalid(f"CNI_ARGS: invalid pair {part!r:.80}", 'pairs are KEY=VALUE, with ";" between them')
    if not tolerant:
        _refuse_unknown(pairs)
    return tuple(pairs)


def encode_args(pairs: Sequence[tuple[str, str]]) -> str:
    """The pairs as CNI_ARGS. Raises CNIError INVALID_ENVIRONMENT for one that would read back as something else."""
    for key, value in pairs:
        if not key or "=" in key or ";" in key + value or "\0" in key + value:
            raise invalid(f"CNI_ARGS: {key!r:.40}={value!r:.80} cannot be written", 'neither may have a ";" in it')
    return ";".join(f"{key}={value}" for key, value in pairs)


def pod_ref(args: Sequence[tuple[str, str]]) -> PodRef | None:
    """The pod of CNI_ARGS, None when they name none. Raises CNIError INVALID_ENVIRONMENT for what is no pod's name."""
    given = dict(args)
    pod = PodRef(
        namespace=given.get("K8S_POD_NAMESPACE", ""),
        name=given.get("K8S_POD_NAME", ""),
        uid=given.get("K8S_POD_UID", ""),
        infra_container_id=given.get("K8S_POD_INFRA_CONTAINER_ID", ""),
    )
    if not pod.namespace or not pod.name:
        return None
    for key, value, shape in (
        ("K8S_POD_NAMESPACE", pod.namespace, _POD_NAME),
        ("K8S_POD_NAME", pod.name, _POD_NAME),
        ("K8S_POD_UID", pod.uid, _UID),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.infra_container_id, _UID),
    ):
        if not shape.fullmatch(value):
            raise invalid(f"CNI_ARGS: {key} is {value!r:.80}", "letters, digits, dots and hyphens are allowed")
    return pod


def delegate_args(
    pod: PodRef | None, runtime_args: Sequence[tuple[str, str]], *, mac: str = "", ips: Sequence[str] = ()
) -> Pairs:
    """CNI_ARGS for a delegate: ours in upstream's order, then the runtime's others, then MAC and IP; no key twice."""
    ours: dict[str, str] = {"IgnoreUnknown": "true"}
    if pod is not None:
        ours["K8S_POD_NAMESPACE"] = pod.namespace
        ours["K8S_POD_NAME"] = pod.name
        ours["K8S_POD_INFRA_CONTAINER_ID"] = pod.infra_container_id
        ours["K8S_POD_UID"] = pod.uid
    asked = {key: value for key, value in (("MAC", mac), ("IP", ",".join(ips))) if value}
    others = {key: value for key, value in runtime_args if key not in ours and key not in asked}
    return tuple({**ours, **others, **asked}.items())


def _refuse_unknown(pairs: Sequence[tuple[str, str]]) -> None:
    ignore = dict(pairs).get("IgnoreUnknown", "false").lower()
    if ignore not in _TRUE + _FALSE:
        raise invalid(f"CNI_ARGS: IgnoreUnknown is {ignore!r:.40}", "1, true, 0 or false")
    unknown = [key for key, _ in pairs if key not in _KNOWN_ARGS]
    if unknown and ignore in _FALSE:
        raise invalid(f"CNI_ARGS: unknown keys {', '.join(unknown)[:200]!a}", "IgnoreUnknown=1 lets them pass")


def invalid(message: str, hint: str) -> CNIError:
    """An environment that the runtime has to mend."""
    return CNIError(Code.INVALID_ENVIRONMENT, message, hint=hint)
