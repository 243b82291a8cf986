"""Upstream's own programs to measure against: found, or built once from the Go module proxy and kept in a cache.

    python -m benchmarks.peers      build now what is missing, and say how long it took

MULTUS_BENCH_BIN names a folder with programs built elsewhere.
"""

import os
from typing import Final

from tests.go_programs import GoPrograms

_MODULE: Final = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4"
VERSION: Final = os.environ.get("MULTUS_BENCH_UPSTREAM", "v4.2.4")
"""The newest release that the module proxy has; 4.3 was tagged but is not served."""

PROGRAMS: Final = GoPrograms(
    project="upstream",
    module=_MODULE,
    version=VERSION,
    packages=("cmd/multus-daemon", "cmd/multus-shim", "cmd/multus"),
    shelf="multus-bench",
    given_by="MULTUS_BENCH_BIN",
    variables={f"{_MODULE}/pkg/multus.version": VERSION},
)
"""The thick daemon and its shim; the thin plugin, which has neither."""
directory = PROGRAMS.directory
missing = PROGRAMS.missing
build = PROGRAMS.build

if __name__ == "__main__":
    PROGRAMS.main()
