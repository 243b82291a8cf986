"""Acting as a container runtime: executes the plugin binary as one does, on a network namespace of a pod."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from multus.cni.errors import CNIError, Code
from multus.errors import Fault, MultusError
from multus.kube.objects import Pod

_LIMIT = 700.0  # seconds; the shim itself gives up before


class RuntimeFailure(MultusError):  # noqa: N818 (an error, in this place's words)
    """The call could not be made at all."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a call gave: the result's JSON (empty for all but ADD), and how long it took in seconds."""

    result: dict[str, Any]
    seconds: float


def container_id(pod: Pod) -> str:
    """The container id that this tool uses for a pod: always the same, so that detach finds what attach made."""
    return f"multusctl-{pod.namespace}-{pod.name}"[:128].rstrip("-.")


def default_shim() -> Path:
    """The plugin binary that was installed with this program."""
    return Path(sys.executable).parent / "multus"


def call(
    command: str,
    *,
    shim: Path,
    conf: bytes,
    pod: Pod,
    netns: str,
    ifname: str = "eth0",
    extra: Mapping[str, str] | None = None,
    enter: Sequence[str] = (),
) -> Outcome:
    """Run the plugin once; `enter` is put before its command line.

    :raises CNIError: what it answered. :raises RuntimeFailure: it cannot be run, or answered with nonsense.
    """
    env = {**environment(command, shim=shim, pod=pod, netns=netns, ifname=ifname), **(extra or {})}
    begin = time.perf_counter()
    try:
        line = [*enter, str(shim)]
        done = subprocess.run(line, input=conf, env=env, capture_output=True, check=False, timeout=_LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeFailure(f"cannot run {shim}: {error}", hint="is it there? multusctl install, or --shim") from None
    seconds = time.perf_counter() - begin
    return Outcome(result=read_answer(done.returncode, done.stdout, done.stderr, shim=shim), seconds=seconds)


def environment(command: str, *, shim: Path, pod: Pod, netns: str, ifname: str = "eth0") -> dict[str, str]:
    """What a runtime tells the plugin about a call: all of its environment."""
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id(pod),
        "CNI_NETNS": netns,
        "CNI_IFNAME": ifname,
        "CNI_PATH": str(shim.parent),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name};"
        f"K8S_POD_INFRA_CONTAINER_ID={container_id(pod)};K8S_POD_UID={pod.uid}",
    }


def read_answer(code: int, stdout: bytes, stderr: bytes, *, shim: Path) -> dict[str, Any]:
    """The result's JSON, empty for all but ADD, from how the plugin ended.

    :raises CNIError: what it answered. :raises RuntimeFailure: it answered with nonsense.
    """
    if code != 0:
        raise _failure(stdout, stderr)
    try:
        result: dict[str, Any] = json.loads(stdout) if stdout.strip() else {}
    except ValueError:
        raise RuntimeFailure(f"{shim} printed what is no JSON: {stdout[:200]!r}") from None
    return result


def runtime_conf(data: bytes, *, where: str) -> bytes:
    """The conf that a runtime hands to our plugin: of a list, its first plugin with the list's name and version.

    :raises RuntimeFailure: not JSON, or a list of several plugins, which is not this tool's to chain.
    """
    try:
        body = json.loads(data)
        plugins = body.get("plugins")
    except (ValueError, AttributeError):
        raise RuntimeFailure(f"{where} is no CNI configuration") from None
    if plugins is None:
        return data
    if not isinstance(plugins, list) or len(plugins) != 1 or not isinstance(plugins[0], dict):
        raise RuntimeFailure(f"{where} has not exactly one plugin", hint="give multusctl the daemon's own conf: --conf")
    plugin = {**plugins[0], "name": body.get("name", ""), "cniVersion": body.get("cniVersion", "")}
    return json.dumps(plugin).encode()


def conf_in_force(directory: Path) -> tuple[bytes, str]:
    """The configuration that a runtime would use: the first by name in its directory. Its bytes and its path.

    :raises RuntimeFailure: there is none.
    """
    try:
        found = sorted(
            path for path in directory.iterdir() if path.suffix in (".conf", ".conflist", ".json") and path.is_file()
        )
    except OSError as error:
        raise RuntimeFailure(
            f"cannot look into {directory}: {error.strerror}", hint="name a file with --conf"
        ) from None
    if not found:
        raise RuntimeFailure(f"no CNI configuration in {directory}", hint="is multusd running? or name one with --conf")
    return runtime_conf(found[0].read_bytes(), where=str(found[0])), str(found[0])


def _failure(stdout: bytes, stderr: bytes) -> MultusError:
    try:
        body = json.loads(stdout)
        return CNIError(int(body["code"]), str(body["msg"]), hint=str(body.get("details", "")))
    except (ValueError, KeyError, TypeError):
        said = (stdout or stderr)[:300].decode(errors="backslashreplace")
        return CNIError(Code.INTERNAL, f"the plugin failed without a CNI error: {said!r}")
