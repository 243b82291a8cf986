"""A CNI plugin for tests: records every call, and does as it is told.

Installed under any name by the `noops` fixture, which puts a line with the interpreter above this text. It is told by
`NAME.json` beside the program (a test can change that at any time), and by the key "noop" of its conf, which wins:

  record     directory of the records; NAME.calls beside the program otherwise
  result     what ADD prints, in place of the previous result or one with the interface (true of 0.3.0 and newer)
  ips        addresses of that interface, for the result that it makes itself
  link       true: really make a dummy interface on ADD, look for it on CHECK, remove it on DEL
  fail       {COMMAND: {"code": .., "msg": .., "details": ..}}: print that, exit 1
  exit       {COMMAND: STATUS}: print nothing, exit so
  stderr     {COMMAND: TEXT}: print that there, too
  garbage    {COMMAND: TEXT}: print that in place of a result (or, with `exit`, of an error)
  delay      {COMMAND: SECONDS}: sleep first
and lists of commands:
  hold       wait until a file "release" is in the directory of the records
  hang       sleep for an hour
  stubborn   hang, and take no notice of SIGTERM
  die        be killed (SIGKILL)
  flood      print without end
  flood_err  print a lot on stderr
  mute       close stdout first
  linger     leave a child that holds stdout for an hour; its id is in the record as "child"
  deaf       do not read stdin (only in NAME.json, as the conf stays unread)
  shut       close stdin without having read it (so, too)

A record is a JSON object in a file of its own, there before anything is done, and written anew at the end: plugin,
command, env, cwd, fds, conf (None if it is no JSON), stdin, pid, group, began and ended (monotonic nanoseconds; ended
is None until then), and end ("ok", "failed").
"""
# This starts in 13 ms; pathlib, typing and subprocess would double that.
# ruff: noqa: PTH100, PTH103, PTH109, PTH110, PTH118, PTH119, PTH120, PTH123, PTH105, PTH208

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
HOUR = 3600


def main() -> int:
    here = os.path.abspath(sys.argv[0])
    command = os.environ.get("CNI_COMMAND", "")
    told = read_json(here + ".json")
    stdin = ""
    if command in told.get("shut", ()):
        os.close(0)
    elif command not in told.get("deaf", ()):
        stdin = sys.stdin.buffer.read().decode(errors="backslashreplace")
    try:
        conf = json.loads(stdin)
    except ValueError:
        conf = None
    if isinstance(conf, dict):
        told = {**told, **conf.get("noop", {})}
    if command == "VERSION":
        print(json.dumps({"cniVersion": VERSIONS[-1], "supportedVersions": VERSIONS}))
        return 0
    directory = told.get("record", here + ".calls")
    os.makedirs(directory, exist_ok=True)
    record: dict[str, Any] = {
        "plugin": os.path.basename(here),
        "command": command,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "fds": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "conf": conf,
        "stdin": stdin,
        "pid": os.getpid(),
        "group": os.getpgrp(),
        "began": time.monotonic_ns(),
        "ended": None,
        "end": "",
    }
    path = os.path.join(directory, "%020d-%d.json" % (record["began"], os.getpid()))
    write(path, record)
    status = act(told, command, conf or {}, directory, record, path)
    record.update(ended=time.monotonic_ns(), end="failed" if status else "ok")
    write(path, record)
    return status


def act(
    told: dict[str, Any], command: str, conf: dict[str, Any], directory: str, record: dict[str, Any], path: str
) -> int:
    if command in told.get("mute", ()):
        os.close(1)
    time.sleep(told.get("delay", {}).get(command, 0))
    if command in told.get("hold", ()):
        while not os.path.exists(os.path.join(directory, "release")):
            time.sleep(0.002)
    sys.stderr.write(told.get("stderr", {}).get(command, ""))
    sys.stderr.flush()
    if command in told.get("linger", ()):
        child = os.fork()
        if child == 0:
            time.sleep(HOUR)
            os._exit(0)
        record["child"] = child
        write(path, record)
    if command in told.get("stubborn", ()):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        record["deaf to"] = "SIGTERM"
        write(path, record)
        time.sleep(HOUR)
    if command in told.get("hang", ()):
        time.sleep(HOUR)
    if command in told.get("die", ()):
        os.kill(os.getpid(), signal.SIGKILL)
    if command in told.get("flood", ()):
        while True:
            os.write(1, b"x" * 65536)
    if command in told.get("flood_err", ()):
        for _ in range(64):
            os.write(2, b"y" * 65536)
        os.write(2, b"the last words")
    status: int = told.get("exit", {}).get(command, 0)
    if command in told.get("mute", ()):
        os._exit(status)  # without Python's own complaint about a stdout that is gone
    fault = told.get("fail", {}).get(command)
    if fault is None and told.get("link"):
        fault = link(command)
    if fault is not None:
        print(json.dumps({"cniVersion": conf.get("cniVersion", "0.1.0"), **fault}))
        return 1
    if command in told.get("garbage", {}):
        sys.stdout.write(told["garbage"][command])
    elif command == "ADD" and not status:
        print(json.dumps(result(told, conf)))
    sys.stdout.flush()
    return status


def result(told: dict[str, Any], conf: dict[str, Any]) -> Any:
    version = conf.get("cniVersion") or "0.1.0"
    if "result" in told:
        return told["result"]
    if conf.get("prevResult"):
        return conf["prevResult"]
    made: dict[str, Any] = {"cniVersion": version}
    if VERSIONS.index(version) >= VERSIONS.index("0.3.0"):
        made["interfaces"] = [{"name": os.environ["CNI_IFNAME"], "sandbox": os.environ["CNI_NETNS"]}]
        made["ips"] = [
            {"address": ip, "interface": 0, **({} if version >= "1.0.0" else {"version": "6" if ":" in ip else "4"})}
            for ip in told.get("ips", ())
        ]
    return made


def link(command: str) -> dict[str, Any] | None:
    """What was wrong with the interface that is really there, None for nothing."""
    import subprocess

    netns, name = os.environ.get("CNI_NETNS", ""), os.environ.get("CNI_IFNAME", "")
    steps = {
        "ADD": [["add", name, "type", "dummy"], ["set", name, "up"]],
        "CHECK": [["show", name]],
        "DEL": [["del", name]] if netns else [],
    }
    for step in steps.get(command, ()):
        done = subprocess.run(["nsenter", "--net=" + netns, "ip", "link", *step], capture_output=True, text=True)
        if done.returncode and command != "DEL":
            return {"code": 999, "msg": done.stderr.strip()}
    return None


def read_json(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {}


def write(path: str, record: dict[str, Any]) -> None:
    temporary = "%s/.%d" % (os.path.dirname(path), os.getpid())
    with open(temporary, "w") as file:
        json.dump(record, file)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
