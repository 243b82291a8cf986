"""Metrics of a daemon that serves pods."""

import sys
from collections.abc import Callable

from multus.cli.box import Box

_FETCH = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9099/metrics').read().decode())"


def test_a_pods_networks_are_counted(make_box: Callable[..., Box]) -> None:
    box = make_box(settings={"metricsPort": 9099})
    box.start()
    sandbox = box.pod("pod")
    box.cni("ADD", sandbox)
    told = box.host(sys.executable, "-c", _FETCH)
    for line in (
        'multus_delegate_seconds_count{command="ADD",delegate="bridge",network="cluster-net",outcome="ok"} 1.0',
        'multus_cni_seconds_count{command="ADD",outcome="ok"} 1.0',
        'multus_journal_sandboxes{state="attached"} 1.0',
        "multus_delegates_waiting 0.0",
    ):
        assert line in told.splitlines(), told
    box.cni("DEL", sandbox)
    told = box.host(sys.executable, "-c", _FETCH)
    assert 'multus_journal_sandboxes{state="attached"} 0.0' in told
    assert 'multus_cni_seconds_count{command="DEL",outcome="ok"} 1.0' in told
