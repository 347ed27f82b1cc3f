"""Runs one program behind walls, in a process of its own; `sandbox.py` starts it with `-c`, it imports nothing of ours.

The request is JSON on stdin, the result JSON on stdout. The order of the walls matters: each takes away a right that
those before it needed. If one that matters cannot be built, nothing is run. The namespaces are an addition: where the
kernel denies them there is no folder to write in, and the rest holds as it is.
"""

import ctypes
import json
import os
import resource
import struct
import sys
import types
from typing import Any

__all__ = ["Refused", "build", "main", "run"]

_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT, _KILL = 38, 1, 9
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_PRIVATE, _LOCKED_DOWN = 0x44000, 0xE  # MS_REC | MS_PRIVATE; MS_NOSUID | MS_NODEV | MS_NOEXEC
_EXECUTE, _WRITE, _READ, _LIST = 1, 2, 4, 8  # LANDLOCK_ACCESS_FS_*
_REMOVE_MAKE, _TRUNCATE = 0x30 | 0x80 | 0x100, 1 << 14  # remove folder and file, make folder and file
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # by version; later ones know more than files


class Refused(Exception):
    """A wall that could not be built."""


def main() -> None:
    request = json.load(sys.stdin)
    result = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    try:
        build(request)
    except Refused as error:
        answer = {"status": "refused", "message": str(error)}
    else:
        answer = run(request["program"])
    os.write(result, json.dumps({"token": request["token"], **answer}).encode())
    os._exit(0)


def build(request: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, _KILL, 0, 0, 0)
    may_write = _own_namespaces(libc, request["folder"], request["folder_bytes"])
    os.chdir(request["folder"])
    _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
    _confine_files(libc, request["readable"], request["folder"] if may_write else None)
    machine = os.uname().machine
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    _check(libc.syscall(_CAPSET[machine], header, ctypes.create_string_buffer(24)), "dropping capabilities")
    for name, (soft, hard) in request["limits"].items():
        _limit(getattr(resource, name), soft, hard)
    filter_ = ctypes.create_string_buffer(bytes.fromhex(request["filter"]))
    program = struct.pack("@HP", (len(filter_) - 1) // 8, ctypes.addressof(filter_))
    _check(libc.syscall(_SECCOMP[machine], 1, 0, ctypes.create_string_buffer(program)), "the filter of system calls")


def _check(code: int, what: str) -> int:
    if code < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return code


def _limit(kind: int, soft: int, hard: int) -> None:
    """Lower a limit; one that is lower already stays."""
    highest = resource.getrlimit(kind)[1]
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(kind, (soft, hard))


def _own_namespaces(libc: ctypes.CDLL, folder: str, n_bytes: int) -> bool:
    """Users, network, messages and mounts of its own, and a folder in memory that holds `n_bytes` and goes with it."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_NET | _NEW_IPC | _NEW_MOUNTS):
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    options = f"size={n_bytes},nr_inodes=1000,mode=700".encode()
    if libc.mount(b"none", b"/", None, _PRIVATE, None):
        return False
    return bool(libc.mount(b"none", folder.encode(), b"tmpfs", _LOCKED_DOWN, options) == 0)


def _confine_files(libc: ctypes.CDLL, readable: list[str], folder: str | None) -> None:
    """From here on files are opened below `readable`, to read, and below `folder`; nowhere else."""
    version = _check(libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock")
    handled = _HANDLED[min(version, 3)]
    attributes = ctypes.create_string_buffer(struct.pack("=Q", handled))
    rules = _check(libc.syscall(_LANDLOCK_CREATE, attributes, 8, 0), "Landlock")
    for path in readable:
        if os.path.isdir(path):
            _allow(libc, rules, path, _EXECUTE | _READ | _LIST)
        elif os.path.exists(path):
            _allow(libc, rules, path, _READ)
    _allow(libc, rules, os.devnull, _READ | _WRITE)
    if folder is not None:
        _allow(libc, rules, folder, handled & (_READ | _LIST | _WRITE | _REMOVE_MAKE | _TRUNCATE))
    _check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, access: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access, place))
    _check(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), f"Landlock for {path}")
    os.close(place)


def run(program: str) -> dict[str, str]:
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "program", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit and what the program raises of its own are no success
        message = f"{type(error).__name__}: {error}"[:300]
        return {"status": "failed", "message": message.encode(errors="backslashreplace").decode()}
    return {"status": "passed", "message": ""}


if __name__ == "__main__":
    main()
