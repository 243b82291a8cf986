"""The cluster lane: root and a real Kubernetes in namespaces of its own. Where something is missing, it is skipped."""

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cluster import binaries, janitor
from tests.cluster.cluster import Cluster, absent, versions

_ONE: Final = 240  # seconds for one test; a minute without API server is in one of them
_ALL: Final = float(os.environ.get("MULTUS_CLUSTER_SECONDS", "900"))
"""Seconds for the whole lane: twice what it takes on two cores."""
_FIRST, _LAST = "test_walkthrough", "test_uninstall"
_here = Path(__file__).parent
_begin = pytest.StashKey[float]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if _here in item.path.parents]
    if not mine:
        return
    order = {_FIRST: 0, _LAST: 2}  # from the very beginning to the very end
    items.sort(key=lambda item: order.get(item.path.stem, 1) if item in mine else 1)
    reason = _lacking()
    for item in mine:
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(_ONE))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the run where the lane's time is over: what follows would only fail later."""
    if _here not in item.path.parents:
        return
    begin = item.session.stash.setdefault(_begin, time.monotonic())
    if time.monotonic() - begin > _ALL:
        pytest.exit(
            f"the cluster lane has had its {_ALL:g} s before {item.name}: the machine is too busy, or something hangs "
            "(--durations=10 shows where the time went; MULTUS_CLUSTER_SECONDS gives it more)",
            returncode=1,
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One plain line, and why what was skipped was."""

    def count(*names: str) -> int:
        reports = [each for name in names for each in terminalreporter.stats.get(name, ())]
        return sum(each.nodeid.startswith("tests/cluster/") for each in reports)

    passed, failed, skipped = count("passed"), count("failed", "error"), count("skipped")
    if reason := _lacking():
        terminalreporter.line(f"cluster: skipped: {reason}")
    elif passed:
        terminalreporter.line(f"cluster: {versions()}")
    terminalreporter.line(f"cluster: {passed} passed, {failed} failed, {skipped} skipped")


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
    janitor.sweep()
    directory = Path(tempfile.mkdtemp(prefix=f"{janitor.PREFIX}{os.getpid()}-", dir=janitor.STATE))
    with janitor.watched(directory), Cluster(directory) as cluster:
        yield cluster


@pytest.fixture
def cluster(bare_cluster: Cluster) -> Cluster:
    """The same with Flannel and multus, as `kubectl apply -k deploy/plain` brings it."""
    bare_cluster.bring_multus()
    return bare_cluster
