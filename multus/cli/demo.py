"""`multusctl demo`: the walk-through on this machine, with real plugins and real namespaces, everything given back.

A node in a box stands for the cluster's node: a bridge with host-local addresses stands where Flannel would. A vanilla
pod gets eth0; a pod that asks for `macvlan-conf` gets eth0 and net1.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from multus.cli import output
from multus.cli.box import Box, Sandbox

MACVLAN_CONF: Final = {
    "cniVersion": "0.3.0",
    "type": "macvlan",
    "master": "eth0",
    "mode": "bridge",
    "ipam": {
        "type": "host-local",
        "subnet": "192.168.1.0/24",
        "rangeStart": "192.168.1.200",
        "rangeEnd": "192.168.1.216",
        "routes": [{"dst": "0.0.0.0/0"}],
        "gateway": "192.168.1.1",
    },
}
"""The walk-through's NetworkAttachmentDefinition, word for word."""

_NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo", help="the walk-through on this machine", description=__doc__
    )
    parser.add_argument("--keep-log", action="store_true", help="print the daemon's log at the end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it. Exit code 0 when every step showed what it should."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="multus-demo-") as scratch, Box(Path(scratch, "node")) as box:
        wrong = _walk(box)
        if arguments.keep_log:
            output.heading("The daemon's log")
            print(box.log.read_text(errors="replace"), end="")
    verdict = output.paint("Something is not as it should be.", "red") if wrong else "Everything as it should be."
    output.heading(f"{verdict} {time.perf_counter() - begin:.1f} s in all.")
    return 1 if wrong else 0


def _walk(box: Box) -> int:
    wrong = 0

    def expect(right: bool, text: str, seconds: float | None = None) -> None:
        nonlocal wrong
        if right:
            output.good(text, seconds)
        else:
            wrong += 1
            output.bad(text)

    output.heading("1. A node with a default network, and Multus over it")
    output.note("bridge + host-local 10.244.1.0/24 stand for Flannel")
    seconds = box.start()
    conf = json.loads(box.conf())
    expect("clusterNetwork" in conf, "multusd runs; its CNI conf is the node's first", seconds)

    output.heading("2. A vanilla pod gets eth0")
    vanilla = box.pod("vanilla")
    done = box.cni("ADD", vanilla)
    expect(_interfaces(vanilla) == ["eth0", "lo"], "pod vanilla: eth0, and nothing else", done.seconds)
    _show(box, vanilla, "vanilla")

    output.heading("3. NetworkAttachmentDefinition macvlan-conf")
    box.nad("macvlan-conf", MACVLAN_CONF)
    output.note(json.dumps(MACVLAN_CONF))
    expect(True, "created in namespace default")

    output.heading(f"4. A pod with {_NETWORKS}: macvlan-conf gets eth0 and net1")
    multi = box.pod("multipod", annotations={_NETWORKS: "macvlan-conf"})
    done = box.cni("ADD", multi)
    expect(_interfaces(multi) == ["eth0", "lo", "net1"], "pod multipod: eth0 and net1", done.seconds)
    _show(box, multi, "multipod")
    ips = _address(multi, "net1")
    expect(ips.startswith("192.168.1.20"), f"net1 has {ips}, out of 192.168.1.200 to .216")
    names = [entry["name"] for entry in box.status("multipod") or []]
    expect(names == ["cluster-net", "default/macvlan-conf"], f"network-status names {', '.join(names)}")

    output.heading("5. Everything is given back")
    for name, sandbox in (("multipod", multi), ("vanilla", vanilla)):
        done = box.cni("DEL", sandbox)
        box.remove(name)
        expect(True, f"pod {name} is deleted", done.seconds)
    left = box.leftovers()
    expect(not left, "left over: " + (", ".join(left) or "no interface, no address, no IPAM file, no journal row"))
    box.stop()
    expect(bool(box.conf()), "multusd has stopped; its CNI conf stays, so that no pod comes up without its networks")
    return wrong


def _interfaces(sandbox: Sandbox) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link")))


def _address(sandbox: Sandbox, ifname: str) -> str:
    found = json.loads(sandbox.run("ip", "-j", "-4", "address", "show", ifname))
    return str(found[0]["addr_info"][0]["local"]) if found and found[0]["addr_info"] else ""


def _show(box: Box, sandbox: Sandbox, name: str) -> None:
    """What the pod sees, read inside its namespace, and what it is told."""
    rows = []
    for link in json.loads(sandbox.run("ip", "-j", "-d", "address")):
        kind = link.get("linkinfo", {}).get("info_kind", "loopback")
        addresses = ",".join(f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"])
        rows.append((link["ifname"], kind, addresses or "-", link.get("address", "-"), str(link["mtu"])))
    print()
    output.table(("INTERFACE", "KIND", "ADDRESSES", "MAC", "MTU"), rows, indent="      ")
    for line in sandbox.run("ip", "route").splitlines():
        output.note(f"route {line.strip()}")
    status = box.status(name)
    for line in json.dumps(status, indent=2).splitlines() if status else ["no network-status"]:
        output.note(line)
    print()
