"""Bounds of a child that reads a stranger's file, set before it reads the first byte.

Invariants (of a child after `seal`, on Linux with seccomp on x86-64 or AArch64)
- It makes no system call but those in ALLOWED: it opens no file and no socket, starts no process or thread, signals and
  reads no other process. It has what its parent gave it: its input, its outputs, a pipe for its answer.
- Address space, CPU time and each written file are bounded by the kernel, on every machine.
- If the kernel has to free memory, it kills this child before any other process of the container.
- It ends with its parent.

A call that is not allowed fails with EPERM. It does not kill, because libraries ask for things they can do without.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

FILE_BYTES: Final = 128 * 1024 * 1024
NICE: Final = 10

# Name: number on x86-64, on AArch64.
ALLOWED: Final = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "ftruncate": (77, 46),
    "getcwd": (79, 17),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),  # glibc's fstat; it may ask whether a name exists, but open nothing
    "getrandom": (318, 278),
}
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER: Final = 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: LD|W|ABS, JMP|JEQ|K, RET|K
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EPERM

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def filters() -> bool:
    """Return whether `seal` filters system calls on this machine: the kernel must have seccomp (tried in a child)."""
    if platform.machine() not in _ARCHITECTURES:
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(not _filter())
    return os.waitpid(pid, 0)[1] == 0


def yield_cpu() -> None:
    """Give this process, and the group of its session where the kernel schedules sessions first, a lower priority."""
    os.nice(NICE)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def bound(memory_bytes: int, cpu_s: int) -> None:
    """Bound this process's memory, CPU time and files."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def seal(parent: int, memory_bytes: int, cpu_s: int, *, filtered: bool) -> None:
    """Bound this process, tie it to its parent, and filter its system calls.

    `filtered`: the kernel did so before (`filters`). A process that it does not filter then ends here, unsealed.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError):  # without /proc the kernel chooses by size, which is this process, too
        Path("/proc/self/oom_score_adj").write_text("1000")
    bound(memory_bytes, cpu_s)
    if not _filter() and filtered:
        os._exit(1)


def _filter() -> bool:
    column, architecture = _ARCHITECTURES.get(platform.machine(), (0, 0))
    if not architecture:
        return False
    numbers = [pair[column] for pair in ALLOWED.values()]
    steps = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _DENY), (_LOAD, 0, 0, 0)]
    # A jump skips the comparisons that are left and the refusal behind them.
    steps += [(_JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    no_new_privileges = _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    done = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) if no_new_privileges else -1
    return bool(done == 0)
