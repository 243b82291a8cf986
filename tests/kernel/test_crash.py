"""kill -9 at every step of ADD and of DEL: what the next multusd makes of it, and that nothing is left in the end.

The steps are enumerated, not drawn: a step that is added to the code and not here fails `test_every_step_is_drilled`.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import multus
from multus.cli.box import Box, Sandbox
from multus.cli.demo import MACVLAN_CONF
from multus.cni.errors import CNIError
from multus.drills import ADD_STEPS, DEL_STEPS

NETWORKS = "k8s.v1.cni.cncf.io/networks"
POSITIONS = 3
SECOND = {
    "cniVersion": "1.0.0",
    "type": "bridge",
    "bridge": "br-second",
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
}


def _steps(templates: tuple[str, ...]) -> list[str]:
    return [
        template.format(position) for template in templates for position in range(POSITIONS if "{}" in template else 1)
    ]


def _node(make_box: Callable[..., Box]) -> tuple[Box, Sandbox]:
    box = make_box()
    box.nad("macvlan-conf", MACVLAN_CONF)
    box.nad("second", SECOND)
    return box, box.pod("pod", annotations={NETWORKS: "macvlan-conf,second"})


class _Call(threading.Thread):
    """A runtime's call that outlives the daemon it began with."""

    def __init__(self, box: Box, command: str, sandbox: Sandbox, **extra: Any) -> None:
        super().__init__(daemon=True)
        self.box, self.command, self.sandbox, self.extra = box, command, sandbox, extra
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.box.cni(self.command, self.sandbox, **self.extra)
        except Exception as error:
            self.error = error

    def end(self) -> Exception | None:
        self.join(50)
        assert not self.is_alive()
        return self.error


def _wait_for_death(box: Box) -> None:
    assert box.daemon is not None
    assert box.daemon.wait(30) == -9, box.log.read_text()
    box.daemon = None


def _gone(box: Box) -> None:
    """The bridge that the plugin made for the second network stays, as bridges do."""
    left = [each for each in box.leftovers() if each != "interface br-second"]
    assert left == [], box.log.read_text()


@pytest.mark.parametrize("step", _steps(ADD_STEPS))
def test_an_add_goes_on_with_the_next_daemon(make_box: Callable[..., Box], step: str) -> None:
    box, sandbox = _node(make_box)
    box.start(env={"MULTUS_DRILL": step})
    call = _Call(box, "ADD", sandbox)
    _wait_for_death(box)
    box.start()
    assert call.end() is None, box.log.read_text()
    addresses = sandbox.run("ip", "-brief", "-4", "address")
    assert all(re.search(rf"^{name}\S* +\S+ +[0-9]", addresses, re.M) for name in ("eth0", "net1", "net2"))
    box.wait(lambda: box.status("pod"), "the network-status")
    assert [entry["interface"] for entry in box.status("pod")] == ["eth0", "net1", "net2"]
    box.cni("DEL", sandbox)
    _gone(box)


@pytest.mark.parametrize("step", _steps(ADD_STEPS))
def test_an_add_that_nobody_waits_for_is_undone_or_deleted(make_box: Callable[..., Box], step: str) -> None:
    """The runtime died with the daemon. Before the ADD is recorded, the next daemon undoes it by itself."""
    box, sandbox = _node(make_box)
    box.start(env={"MULTUS_DRILL": step})
    call = _Call(box, "ADD", sandbox, MULTUS_DAEMON_TIMEOUT="0")
    _wait_for_death(box)
    assert isinstance(call.end(), CNIError)
    box.start()
    if step not in ("add:recorded", "add:status", "add:answer"):
        _gone(box)
    box.cni("DEL", sandbox)
    box.cni("DEL", sandbox)
    _gone(box)


def test_rules_of_a_firewall_go_although_its_result_was_never_recorded(make_box: Callable[..., Box]) -> None:
    """That plugin deletes nothing without the result of the plugins before it."""
    box = make_box()
    box.nad("guarded", {"cniVersion": "1.0.0", "plugins": [SECOND, {"type": "firewall", "backend": "iptables"}]})
    sandbox = box.pod("pod", annotations={NETWORKS: "guarded"})
    box.start(env={"MULTUS_DRILL": "add:done:1"})
    call = _Call(box, "ADD", sandbox, MULTUS_DAEMON_TIMEOUT="0")
    _wait_for_death(box)
    assert isinstance(call.end(), CNIError)
    assert "10.9.0.2" in box.host("iptables-save")
    box.start()
    _gone(box)
    assert "10.9.0.2" not in box.host("iptables-save")


@pytest.mark.parametrize("step", _steps(DEL_STEPS))
def test_a_del_is_carried_out_by_the_next_daemon(make_box: Callable[..., Box], step: str) -> None:
    box, sandbox = _node(make_box)
    box.start(env={"MULTUS_DRILL": step})
    box.cni("ADD", sandbox)
    call = _Call(box, "DEL", sandbox, MULTUS_DAEMON_TIMEOUT="0")
    _wait_for_death(box)
    assert call.end() is None  # stored: the next daemon carries it out
    box.remove("pod")
    box.start()
    box.wait(lambda: not list((box.state / "spool").glob("*.del")), "the stored DEL")
    _gone(box)
    box.cni("DEL", sandbox)


def test_every_step_is_drilled() -> None:
    source = "".join(path.read_text() for path in Path(multus.__file__).parent.glob("*.py"))
    called = {re.sub(r"\{[^}]*\}", "{}", name) for name in re.findall(r'_step\(f?"([^"]+)"\)', source)}
    assert called == {*ADD_STEPS, *DEL_STEPS}
