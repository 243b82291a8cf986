"""Kubernetes' own programs for the cluster lane: found, or built once from the Go module proxy and kept in a cache.

    python -m tests.cluster.binaries      build now what is missing, and say how long it took

`go install k8s.io/kubernetes/...@version` cannot work: its go.mod points at its own ./staging folders, which counts
only in the main module. A module of ours around it names the published modules instead.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

KUBERNETES: Final = os.environ.get("MULTUS_KUBERNETES_VERSION", "v1.34.4")
PROGRAMS: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
_STAGING = re.compile(r"^\s*(k8s\.io/[a-z-]+) => \./staging/", re.MULTILINE)
_GO_VERSION = re.compile(r"^go (\S+)$", re.MULTILINE)
_VERSION_VARIABLES: Final = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


class NoBinariesError(Exception):
    """The programs are not there and cannot be made here; the message says what was tried."""


def cache() -> Path:
    """Where what was built is kept, outside the tree."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multus-cluster"


def directory() -> Path:
    """The folder with the programs: MULTUS_CLUSTER_BIN if it is set, else the cache's for this version."""
    given = os.environ.get("MULTUS_CLUSTER_BIN")
    return Path(given) if given else cache() / KUBERNETES / "bin"


def missing() -> list[str]:
    """The programs that are not there yet."""
    return [name for name in PROGRAMS if not os.access(directory() / name, os.X_OK)]


def build() -> float:
    """Build what is missing; seconds that it took.

    :raises NoBinariesError: without Go, without a module proxy, or when the build fails.
    """
    wanted = missing()
    if not wanted:
        return 0.0
    if os.environ.get("MULTUS_CLUSTER_BIN"):
        raise NoBinariesError(f"MULTUS_CLUSTER_BIN={directory()} lacks {', '.join(wanted)}")
    if shutil.which("go") is None:
        raise NoBinariesError("Go is not installed, and MULTUS_CLUSTER_BIN names no folder with Kubernetes' programs")
    begin = time.monotonic()
    module = cache() / KUBERNETES / "module"
    module.mkdir(parents=True, exist_ok=True)
    (module / "go.mod").write_text(_wrapper(module))
    variables = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": KUBERNETES.split(".")[1]}
    flags = " ".join(
        f"-X {package}.{key}={value}" for package in _VERSION_VARIABLES for key, value in variables.items()
    )
    staged = cache() / KUBERNETES / "staged"
    staged.mkdir(exist_ok=True)
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in wanted]
    _go(module, "build", "-p", "2", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", f"{staged}/", *packages)
    directory().mkdir(parents=True, exist_ok=True)
    for name in wanted:
        (staged / name).replace(directory() / name)
    return time.monotonic() - begin


def _wrapper(module: Path) -> str:
    """Our go.mod: Kubernetes, and each of its staging modules as published for that release."""
    (module / "go.mod").write_text("module cluster.test\n\ngo 1.24\n")
    told = json.loads(_go(module, "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"))
    theirs = Path(told["GoMod"]).read_text(encoding="utf-8")
    version = _GO_VERSION.search(theirs)
    published = "v0." + KUBERNETES.partition(".")[2]
    replaces = [f"\t{name} => {name} {published}" for name in _STAGING.findall(theirs)]
    if version is None or not replaces:
        raise NoBinariesError(f"k8s.io/kubernetes {KUBERNETES} has a go.mod of a shape that is not known here")
    return "\n".join(
        [
            "module cluster.test",
            "",
            f"go {version[1]}",
            "",
            f"require k8s.io/kubernetes {KUBERNETES}",
            "",
            "replace (",
            *replaces,
            ")",
            "",
        ]
    )


def _go(module: Path, *arguments: str) -> str:
    """Run go in the module, behind whatever else the machine does."""
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command: Sequence[str] = ["nice", "-n", "10", "go", *arguments]
    done = subprocess.run(command, cwd=module, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        end = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise NoBinariesError(f"go {arguments[0]} failed, so Kubernetes {KUBERNETES} cannot be built here:\n{end}")
    return done.stdout


if __name__ == "__main__":
    try:
        took = build()
    except NoBinariesError as error:
        sys.exit(str(error))
    print(f"Kubernetes {KUBERNETES} is in {directory()}" + (f"; built in {took:.0f} s" if took else ""))
