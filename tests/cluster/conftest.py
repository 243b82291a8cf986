"""The cluster lane: root and a real Kubernetes in namespaces of its own. Where something is missing, it is skipped."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.cluster import Cluster, absent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    if not mine:
        return
    items.sort(key=lambda item: item in mine and item.path.stem != "test_walkthrough")  # from the very beginning
    reason = _lacking()
    for item in mine:
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(240))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One plain line, and why what was skipped was."""
    stats = terminalreporter.stats
    counts = {name: len(stats.get(name, ())) for name in ("passed", "failed", "error", "skipped")}
    if counts["skipped"] and not counts["passed"]:
        terminalreporter.line(f"cluster: skipped: {_lacking()}")
    failed = counts["failed"] + counts["error"]
    terminalreporter.line(f"cluster: {counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")


def _lacking() -> str:
    """Why there can be no cluster on this machine, "" when there can."""
    if os.geteuid() != 0:
        return "not root: namespaces cannot be made"
    if platform.machine() != "x86_64":
        return f"images are made for x86_64 here, this is {platform.machine()}"
    if programs := absent():
        return f"not installed: {', '.join(programs)} (make test-cluster installs them)"
    if programs := binaries.missing():
        return f"{binaries.directory()} lacks {', '.join(programs)} (make test-cluster builds them)"
    return ""


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """A cluster without any network, ended when the tests are over."""
    # Not pytest's folder, which may be in memory: container images need a file system that overlays can stand on.
    _sweep(Path("/var/tmp"), Path("/sys/fs/cgroup"))
    directory = Path(tempfile.mkdtemp(prefix=f"multus-cluster-{os.getpid()}-", dir="/var/tmp"))
    try:
        with Cluster(directory) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(state: Path, cgroups: Path) -> None:
    """Remove the files and control groups of runs that were killed; their processes ended with them."""
    name = "multus-cluster-*"
    for path in (*state.glob(name), *cgroups.glob(name), *cgroups.glob(f"*/{name}")):
        owner = path.name.removeprefix("multus-cluster-").partition("-")[0]
        if not owner.isdigit() or Path("/proc", owner).exists():
            continue
        if path.is_relative_to(cgroups):
            for each in sorted(path.glob("**/"), reverse=True):
                each.rmdir()
        else:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def cluster(bare_cluster: Cluster) -> Cluster:
    """The same with a default network and multus, as `kubectl apply -k deploy/plain` brings it."""
    if not bare_cluster.get("-n", "kube-system", "ds", "kube-multus-ds"):
        bare_cluster.bring_default_network()
        bare_cluster.deploy("plain")
    return bare_cluster
