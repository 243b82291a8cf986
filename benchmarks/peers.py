"""Upstream's own programs to measure against: found, or built once from the Go module proxy and kept in a cache.

    python -m benchmarks.peers      build now what is missing, and say how long it took

A module of ours requires upstream's at a pinned version, so that its own go.mod decides what it is built with.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MODULE: Final = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4"
VERSION: Final = os.environ.get("MULTUS_BENCH_UPSTREAM", "v4.2.4")
"""The newest release that the module proxy has; 4.3 was tagged but is not served."""

PROGRAMS: Final = ("multus-daemon", "multus-shim")


class NoPeerError(Exception):
    """The programs are not there and cannot be made here; the message says what was tried."""


def directory() -> Path:
    """The folder with the programs: MULTUS_BENCH_BIN if it is set, else the cache's for this version."""
    given = os.environ.get("MULTUS_BENCH_BIN")
    return Path(given) if given else _cache() / VERSION / "bin"


def build() -> float:
    """Build what is missing; seconds that it took.

    :raises NoPeerError: without Go, without a module proxy, or when the build fails.
    """
    wanted = [name for name in PROGRAMS if not os.access(directory() / name, os.X_OK)]
    if not wanted:
        return 0.0
    if os.environ.get("MULTUS_BENCH_BIN"):
        raise NoPeerError(f"MULTUS_BENCH_BIN={directory()} lacks {', '.join(wanted)}")
    if shutil.which("go") is None:
        raise NoPeerError("Go is not installed, and MULTUS_BENCH_BIN names no folder with upstream's programs")
    begin = time.monotonic()
    module, staged = _cache() / VERSION / "module", _cache() / VERSION / "staged"
    for path in (module, staged):
        path.mkdir(parents=True, exist_ok=True)
    packages = [f"{MODULE}/cmd/{name}" for name in wanted]
    imports = "".join(f'import _ "{package}"\n' for package in packages)
    (module / "go.mod").write_text("module bench.test\n\ngo 1.24\n")
    (module / "wanted.go").write_text(f"//go:build wanted\n\npackage wanted\n\n{imports}")
    _go(module, "get", f"{MODULE}@{VERSION}")
    flags = f"-s -w -X {MODULE}/pkg/multus.version={VERSION}"
    _go(module, "build", "-p", "2", "-trimpath", "-ldflags", flags, "-o", f"{staged}/", *packages)
    directory().mkdir(parents=True, exist_ok=True)
    for name in wanted:
        (staged / name).replace(directory() / name)
    return time.monotonic() - begin


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multus-bench"


def _go(module: Path, *arguments: str) -> str:
    """Run go in the module, behind whatever else the machine does."""
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command: Sequence[str] = ["nice", "-n", "10", "go", *arguments]
    done = subprocess.run(command, cwd=module, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        end = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise NoPeerError(f"go {arguments[0]} failed, so upstream {VERSION} cannot be built here:\n{end}")
    return done.stdout


if __name__ == "__main__":
    try:
        took = build()
    except NoPeerError as error:
        sys.exit(str(error))
    print(f"Upstream {VERSION} is in {directory()}" + (f"; built in {took:.0f} s" if took else ""))
