"""What a process gives up before it runs a student's code, by itself and for good.

No root, container or other user is needed. On Linux: Landlock (no file but what the course needs
can be opened, nothing but a scratch folder written), a seccomp filter (no new process, no socket,
no signal to others, no tracing) and limits on memory, time and files. Elsewhere the limits alone.
`confine` returns what holds, in words, and the grading says so.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from saelearn import artifacts


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Attributes:
        cell: seconds of wall time for one cell.
        check: seconds of wall time for one check, all its calls together.
        total: seconds of processor time for the whole lesson.
        memory: bytes beyond what the libraries take.
        disk: bytes of one file.
    """

    cell: float = 120.0
    check: float = 30.0
    total: int = 600
    memory: int = 3 * 2**30
    disk: int = 64 * 2**20


def confine(scratch: Path, limits: Limits) -> list[str]:
    """Give up everything but what a lesson needs.

    Args:
        scratch: the one folder that may be written.
        limits: of memory, processor time and files.

    Returns:
        what holds from now on, in words.
    """
    holds = _limit(limits)
    if sys.platform == "linux" and platform.machine() in _AUDIT:
        _no_new_privileges()
        holds += _landlock(scratch) + _seccomp()
    return holds


def _limit(limits: Limits) -> list[str]:
    for what, most in (
        (resource.RLIMIT_CPU, limits.total),
        (resource.RLIMIT_FSIZE, limits.disk),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        resource.setrlimit(what, (most, most))
    if sys.platform != "linux":  # elsewhere the system takes the number and does nothing
        return ["processor time and file sizes are limited"]
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + limits.memory, taken + limits.memory))
    return ["memory, processor time and file sizes are limited"]


# --- Linux ----------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22


def die_with_parent(parent: int | None = None) -> None:
    """Ask the system to end this process when the one that started it ends, or has ended already.

    Args:
        parent: its process id, if it is known.
    """
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def _no_new_privileges() -> None:
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# Landlock: numbers of include/uapi/linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals


def readable() -> list[Path]:
    """What a lesson needs to read: Python and its packages, this one and its data, the system's.

    Neither the lessons with their solutions nor a home folder is among them.
    """
    package = Path(__file__).resolve().parents[1]
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {sys.prefix, sys.base_prefix, *site.getsitepackages(), site.getusersitepackages()}
    system = ["/usr", "/lib", "/lib64", "/etc/fonts", "/etc/localtime", "/etc/ld.so.cache",
              "/etc/mime.types", "/etc/os-release", "/proc/self", "/proc/cpuinfo", "/proc/meminfo",
              "/proc/stat", "/sys/devices/system", "/dev/urandom", "/dev/zero"]  # fmt: skip
    chosen = [Path(place) for place in (*places, *system)]
    return [path for path in [*chosen, package, artifacts.data_dir()] if path.exists()]


def _landlock(scratch: Path) -> list[str]:
    version = _libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return []
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a thread was started before the rules, which would not hold for it")
    everything = max((v, bits) for v, bits in _ALL_BY_VERSION.items() if v <= version)[1]
    attributes = struct.pack(
        "QQQ", everything, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        return []
    _allow(ruleset, readable(), _EXECUTE | _READ | _LIST)
    _allow(ruleset, [Path("/dev/null")], _READ | _WRITE)
    _allow(ruleset, [scratch], everything & ~_EXECUTE)
    if _libc.syscall(_RESTRICT_SELF, ruleset, 0):
        return []
    os.close(ruleset)
    return ["only the course's files can be read and only a scratch folder written (Landlock)"]


def _allow(ruleset: int, paths: Iterable[Path], rights: int) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        of_a_file = _EXECUTE | _WRITE | _READ | 1 << 14
        granted = rights if path.is_dir() else rights & of_a_file
        _libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", granted, descriptor), 0)
        os.close(descriptor)


# seccomp: a program for the kernel's packet filter, over `struct seccomp_data`
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _REFUSE, _KILL, _UNKNOWN = 0x7FFF0000, 0x00050001, 0x80000000, 0x00050026  # EPERM, ENOSYS
_CLONE_THREAD = 0x00010000
# name -> number on x86_64 and on aarch64; None where there is no such call
_REFUSED = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "perf_event_open": (298, 241), "bpf": (321, 280),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "setpriority": (141, 140), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "mknod": (133, None), "mknodat": (259, 33),
    "mq_open": (240, 180), "shmget": (29, 194), "shmat": (30, 196),
}  # fmt: skip
_BOUNDED = {"clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131),
            "prlimit64": (302, 261)}  # fmt: skip
"""Calls of which a part is allowed: threads, signals and limits of one's own process."""


def _seccomp() -> list[str]:
    machine = platform.machine()
    column = list(_AUDIT).index(machine)
    calls = {name: numbers[column] for name, numbers in _BOUNDED.items()}
    own = os.getpid()
    program = [_load(4), _if_equal(_AUDIT[machine], 1, 0), _return(_KILL), _load(0)]
    program += [_at_least(0x40000000, 0, 1), _return(_KILL)]  # the other numbering of x86
    for number in filter(None, (numbers[column] for numbers in _REFUSED.values())):
        program += [_if_equal(number, 0, 1), _return(_REFUSE)]
    program += [_if_equal(calls["clone3"], 0, 1), _return(_UNKNOWN)]  # libc then uses clone
    program += [_if_equal(calls["clone"], 0, 4), _load(16), _if_set(_CLONE_THREAD, 1, 0)]
    program += [_return(_REFUSE), _return(_ALLOW)]
    for name in ("kill", "tgkill"):
        program += [_if_equal(calls[name], 0, 4), _load(16), _if_equal(own, 1, 0)]
        program += [_return(_REFUSE), _return(_ALLOW)]
    program += [_if_equal(calls["prlimit64"], 0, 5), _load(16), _if_equal(0, 2, 0)]
    program += [_if_equal(own, 1, 0), _return(_REFUSE), _return(_ALLOW), _return(_ALLOW)]
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if _libc.prctl(PR_SET_SECCOMP, 2, filter_, 0, 0):  # 2: a filter
        return []
    return ["no process, network connection or signal to others can be made (seccomp)"]


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", 0x20, 0, 0, offset)


def _return(value: int) -> bytes:
    return struct.pack("HBBI", 0x06, 0, 0, value)


def _if_equal(value: int, then: int, otherwise: int) -> bytes:
    return struct.pack("HBBI", 0x15, then, otherwise, value)


def _at_least(value: int, then: int, otherwise: int) -> bytes:
    return struct.pack("HBBI", 0x35, then, otherwise, value)


def _if_set(bits: int, then: int, otherwise: int) -> bytes:
    return struct.pack("HBBI", 0x45, then, otherwise, bits)
