"""The virtual machine: QEMU's igb cards (an Intel 82576 with SR-IOV) behind an emulated IOMMU, in software.

Cards on one wire are wired together. The guest talks QMP to its own QEMU over a serial port, so that a test can pull a
cable (`set_link pfN`) or a whole card (`device_del pfN`).
"""

import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.image import Image

MEMORY: Final = "1536M"
WIRES: Final = (0, 0, 1, 1)
"""The wire of each card; they have ids pf1, pf2, ... in this order."""
SILENCE: Final = 60.0
"""Seconds after which the machine hangs: without a word on the console, and without its beat (a file, every 5 s)."""
DROWSY: Final = 30.0
"""Seconds without either after which the processors are woken, and again after as many."""
PROCESSOR: Final = "max,-svm,-erms,-fsrm,-avx,-avx2,-la57,-smap,-smep"
"""Without what costs much in software: bytes copied one by one, wide registers, a fifth level of pages, more checks."""
KERNEL: Final = (
    *("console=ttyS0", "quiet", "loglevel=3", "panic=-1", "mitigations=off", "audit=0", "nokaslr", "intel_iommu=on"),
    # An emulator that gets no processor for a while is no sign of a broken clock, which the guest would then change.
    *("clocksource=tsc", "tsc=reliable", "no_timer_check", "nowatchdog"),
    *("init_on_alloc=0", "hardened_usercopy=off", "lsm="),
    "maxcpus=1",  # a second one waits until it is switched on
)
END: Final = re.compile(r"^vm: end (\d+)\D", re.MULTILINE)
"""What the machine says last, with pytest's exit code; the kernel may speak before the line has ended."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run of the machine ended; `code` is pytest's, None when the machine never said one.

    `cut` when it fell silent or the time was up: then what did not come out may still come out another time.
    """

    code: int | None
    why: str
    cut: bool
    console: str
    seconds: float


def command(image: Image, tree: Path, out: Path, sockets: Path, *, processors: int) -> list[str]:
    """QEMU's command line. `tree` is a disk, `out` a directory shared with the machine."""
    words = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        PROCESSOR,
        "-M",
        "q35",
        "-smp",
        str(processors),
    ]
    words += ["-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot", "-action", "panic=exit-failure"]
    words += ["-serial", f"file:{out / 'console'}", "-device", "pvpanic-pci"]
    words += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", " ".join(KERNEL)]
    for name, path in (("root", image.root), ("tree", tree)):
        words += ["-drive", f"file={path},if=none,id={name},format=raw,readonly=on,cache=unsafe"]
        words += ["-device", f"virtio-blk-pci,drive={name}"]
    words += ["-fsdev", f"local,id=out,path={out},security_model=none"]
    words += ["-device", "virtio-9p-pci,fsdev=out,mount_tag=out"]
    # The guest's port is a client of the machine's own monitor: nothing of ours stands between them.
    words += ["-chardev", f"socket,id=monitor,path={sockets / 'qmp'},server=on,wait=off"]
    words += ["-mon", "chardev=monitor,mode=control", "-chardev", f"socket,id=port,path={sockets / 'qmp'}"]
    words += ["-chardev", f"socket,id=outside,path={sockets / 'monitor'},server=on,wait=off"]
    words += ["-mon", "chardev=outside,mode=readline"]
    words += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=qmp"]
    words += ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]
    cards = [(wire, "") for wire in WIRES]
    cards.append((len(WIRES), ",disable-acs=on"))  # its VFs share one IOMMU group: what cannot be given away
    for number, (wire, options) in enumerate(cards, 1):
        words += ["-netdev", f"hubport,id=h{number},hubid={wire}"]
        words += ["-device", f"pcie-root-port,id=rp{number},chassis={number},slot={number}{options}"]
        words += ["-device", f"igb,netdev=h{number},bus=rp{number},id=pf{number},mac=52:54:00:00:{number:02x}:00"]
    return words


def run(image: Image, tree: Path, out: Path, *, processors: int, limit: float, say: Callable[[str], None]) -> Ending:
    """Boot, wait for the end, and leave no process. `say` gets every line of the console as it comes."""
    begin = time.monotonic()
    # The kernel kills it when this process dies, whatever it dies of.
    guarded = [
        "nice",
        "-n",
        "5" if processors > 1 else "7",  # one with two has tests that look at the clock: see lane.TOGETHER
        "setpriv",
        "--pdeathsig",
        "KILL",
        *command(image, tree, out, out.parent, processors=processors),
    ]
    (out / "console").touch()
    with (out / "qemu.log").open("wb") as log:
        qemu = subprocess.Popen(guarded, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        why, cut, console = _watch(qemu, out / "console", begin + limit, say)
    finally:
        qemu.kill()
        qemu.wait()
    said = END.search(console)
    code = int(said[1]) if said else None
    if code is None and not console:
        why += f" {(out / 'qemu.log').read_text(errors='replace').strip()[-400:]}"
    return Ending(code=code, why=why, cut=cut, console=console, seconds=time.monotonic() - begin)


def _watch(
    qemu: "subprocess.Popen[bytes]", path: Path, deadline: float, say: Callable[[str], None]
) -> tuple[str, bool, str]:
    """Why the wait was over, whether it was cut, and the console's text."""
    console, line, heard, beat, woken = "", "", time.monotonic(), 0.0, 0.0
    with path.open("rb") as file:
        while True:
            ended = qemu.poll() is not None
            fresh = file.read().decode("utf-8", "replace").replace("\r", "")
            if fresh:
                console += fresh
                *lines, line = (line + fresh).split("\n")
                for each in lines:
                    say(each)
                heard = time.monotonic()
            if END.search(console, max(len(console) - len(fresh) - 80, 0)):
                return "the machine said its end", False, console
            if (beaten := _modified(path.with_name("beat"))) != beat:
                beat, heard = beaten, time.monotonic()
            if ended:
                return f"the machine ended with {qemu.returncode}", False, console
            quiet = time.monotonic() - heard
            if quiet > DROWSY and time.monotonic() - woken > DROWSY:
                woken = time.monotonic()
                where = _wake(path.parent.parent / "monitor")
                say(f"vm: silent for {quiet:.0f} s, so its processors are woken: {where}")
            if quiet > SILENCE:
                return f"the machine hung: no sign of life for {SILENCE:.0f} s", True, console
            if time.monotonic() > deadline:
                return "the time was up", True, console
            time.sleep(0.1)


def _wake(monitor: Path) -> str:
    """Stop the processors and let them go on, so that one that missed an interrupt finds it; where they were."""
    said = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(monitor))
            client.sendall(b"info registers -a\nstop\ncont\ninfo status\n")
            while chunk := client.recv(65536):
                said += chunk
        except OSError:  # it has said all, or says nothing
            pass
    return " ".join(
        re.findall(r"\bCPU#\d+|\bRIP=\w+|\bRFL=\w+|\bHLT=\d|VM status: \w+", said.decode("utf-8", "replace"))
    )


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
