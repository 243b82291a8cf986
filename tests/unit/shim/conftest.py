"""The compiled shim, and peers to talk to."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import pytest

from multus.wire import HEADER_SIZE, RequestFrame, decode_request, encode_response, request_size

ROOT = Path(__file__).parents[3]
VERSION = "1.2.3-test"


@pytest.fixture(scope="session")
def shim(build_hook: ModuleType) -> Iterator[Path]:
    """The shim as the source has it now, where any user can execute it; the installed one where no compiler is."""
    directory = Path(tempfile.mkdtemp(prefix="multus-shim-", dir="/tmp"))
    directory.chmod(0o755)
    program = directory / "multus"
    try:
        try:
            build_hook.compile_shim(ROOT, program, version=VERSION)
        except RuntimeError as error:
            installed = Path(sys.executable).with_name("multus")
            if not installed.exists():
                pytest.skip(f"no shim is installed, and none can be compiled: {error}")
            shutil.copy(installed, program)
        program.chmod(0o755)
        yield program
    finally:
        shutil.rmtree(directory)


class Connection:
    """One call of a shim, as the daemon sees it."""

    def __init__(self, raw: socket.socket) -> None:
        raw.settimeout(10)
        self.raw = raw

    def request(self) -> RequestFrame:
        data = self._exactly(HEADER_SIZE)
        return decode_request(data + self._exactly(sum(request_size(data))))

    def answer(self, code: int, stdout: bytes) -> None:
        self.raw.sendall(encode_response(code, stdout))
        self.raw.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.raw.recv(size - len(data))
            assert more, f"the shim closed after {len(data)} of {size} bytes"
            data += more
        return data


class Daemon:
    """A daemon that does what a test says, connection by connection."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._listener.settimeout(10)

    def accept(self) -> Connection:
        raw, _ = self._listener.accept()
        return Connection(raw)

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._listener.close()


class Runtime:
    """Calls the shim as a container runtime does. `socket_dir` and `cni_dir` are the test's own."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.socket_dir = directory / "run"
        self.cni_dir = directory / "cni"
        self.spool = self.cni_dir / "spool"
        self.socket = self.socket_dir / "multus.sock"
        self._running: list[subprocess.Popen[bytes]] = []

    def conf(self, **more: Any) -> dict[str, Any]:
        """The network configuration; the shim's wait for a daemon that is away is short unless it says otherwise."""
        return {
            "cniVersion": "0.4.0",
            "name": "multus-cni-network",
            "type": "multus",
            "daemonSocketDir": str(self.socket_dir),
            "cniDir": str(self.cni_dir),
            "daemonTimeout": 0.05,
            **more,
        }

    def env(self, command: str, **more: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/x",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=true;K8S_POD_NAME=web",
            "CNI_PATH": "/opt/cni/bin",
            "PATH": "/bin",
            **more,
        }

    def start(
        self,
        env: dict[str, str],
        conf: bytes,
        *,
        command: list[str] | None = None,
        **options: Any,
    ) -> "subprocess.Popen[bytes]":
        """Start it, hand it the configuration, and come back while it runs."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env, **options}
        process = subprocess.Popen(command or [str(self.program)], stdin=subprocess.PIPE, **options)
        self._running.append(process)
        assert process.stdin is not None
        try:
            process.stdin.write(conf)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it did not want it
        process.stdin = None
        return process

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def runtime(shim: Path, tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(shim, tmp_path)
    yield made
    made.end()


@pytest.fixture
def open_runtime(shim: Path) -> Iterator[Runtime]:
    """In a directory that other users can enter."""
    directory = Path(tempfile.mkdtemp(prefix="multus-", dir="/tmp"))
    directory.chmod(0o755)
    made = Runtime(shim, directory)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(directory)


@pytest.fixture
def daemon(runtime: Runtime) -> Iterator[Daemon]:
    with Daemon(runtime.socket) as made:
        yield made


@pytest.fixture
def make_daemon() -> Callable[[Path], Daemon]:
    return Daemon


class Scanner:
    """The shim's scanner, under a sanitizer where the compiler has one."""

    KEYS = ("daemonSocketDir", "cniDir", "cniVersion", "name")

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process = self._start()

    def scan(self, conf: bytes) -> tuple[list[bytes | None], float]:
        """The four strings (None: absent) and the timeout (negative: absent)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(len(conf).to_bytes(4, sys.byteorder) + conf)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            complaint = self.end()
            self._process = self._start()  # the next one is judged by itself
            pytest.fail(f"the scanner died of {conf[:500]!r}:\n{complaint}")
        *texts, number = line.split()
        return [bytes.fromhex(text[1:].decode()) if text[:1] == b"=" else None for text in texts], float(number)

    def end(self) -> str:
        """Stop it; what it said on stderr."""
        try:
            _, complaint = self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, complaint = self._process.communicate()
        return complaint.decode(errors="replace")

    def _start(self) -> "subprocess.Popen[bytes]":
        env = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        pipe = subprocess.PIPE
        return subprocess.Popen([self._program], stdin=pipe, stdout=pipe, stderr=pipe, env=env)


@pytest.fixture(scope="session")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanner]:
    program = tmp_path_factory.mktemp("scan") / "scan"
    compiler = os.environ.get("CC", "") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    source = [str(Path(__file__).with_name("scan.c")), "-I", str(ROOT / "multus" / "shim"), "-o", str(program)]
    plain = [*compiler.split(), "-std=gnu17", "-g", "-O1", "-Wno-unused-function"]
    sanitized = [*plain, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *source]
    if subprocess.run(sanitized, capture_output=True).returncode != 0:
        subprocess.run([*plain, *source], check=True)
    made = Scanner(program)
    yield made
    made.end()
