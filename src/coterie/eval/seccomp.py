"""The system calls that untrusted code may make, as a filter for the Linux kernel (seccomp, classic BPF).

A list of what is allowed: files that are open, memory, time, threads. Everything else fails with EPERM, so there is no
new process, no socket, no signal to anyone, no change of limits, owners or modes, whatever a later kernel adds. Where
a file may be opened is not decided here (`jail.py`: Landlock); `clone` must be of a thread, `fcntl` may not name an
owner for signals, and `prlimit64` may only be about the process itself.
"""

import struct
from collections.abc import Iterator

__all__ = ["ARCHITECTURES", "build_filter"]

# name, number on x86-64, number on aarch64 ("-": it has none)
_CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, close 3 57,
close_range 436 436, fstat 5 80, stat 4 -, lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43,
fstatfs 138 44, open 2 -, openat 257 56, access 21 -, faccessat 269 48, faccessat2 439 439, lseek 8 62,
getdents64 217 61, readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -,
mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38, renameat2 316 276,
umask 95 166, ftruncate 77 46, fsync 74 82, fdatasync 75 83, flock 73 32, sendfile 40 71,
copy_file_range 326 285, fadvise64 221 223, mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216,
madvise 28 233, brk 12 214, membarrier 324 283, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, pause 34 -, alarm 37 -, getitimer 36 102, setitimer 38 103, restart_syscall 219 128,
ioctl 16 29, pipe 22 -, pipe2 293 59, dup 32 23, dup2 33 -, dup3 292 24, select 23 -, pselect6 270 72,
poll 7 -, ppoll 271 73, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
epoll_pwait 281 22, eventfd2 290 19, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113,
clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getpid 39 172, gettid 186 178,
getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getpgrp 111 -,
getpgid 121 155, getsid 124 156, getgroups 115 158, exit 60 93, exit_group 231 94, uname 63 160,
getrlimit 97 163, getrusage 98 165, sysinfo 99 179, futex 202 98, futex_waitv 449 449, set_tid_address 218 96,
set_robust_list 273 99, get_robust_list 274 100, rseq 334 293, sched_yield 24 124, sched_getaffinity 204 123,
sched_getparam 143 121, sched_getscheduler 145 120, getcpu 309 168, getrandom 318 278
"""
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, the kernel's name
_CLONE, _FCNTL, _PRLIMIT, _CLONE3 = (56, 220), (72, 25), (302, 261), (435, 435)
_THREAD = 0x10000  # CLONE_THREAD
_DUPLICATE = 1030  # F_DUPFD_CLOEXEC
_LAST_FCNTL = 7  # F_SETLKW; 8 and more name owners and signals
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # offsets in struct seccomp_data


def build_filter(machine: str) -> bytes:
    """The filter's instructions, 8 bytes each, for `platform.machine()`, a key of `ARCHITECTURES`."""
    column, architecture = ARCHITECTURES[machine]
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    steps.append((_LOAD, 0, 0, _NUMBER))
    for number in _numbers(column):
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    is_thread = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_BITS, 0, 1, _THREAD)]
    is_self = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_EQUAL, 0, 1, 0)]
    is_plain = [(_LOAD, 0, 0, _SECOND_ARGUMENT), (_JUMP_EQUAL, 1, 0, _DUPLICATE), (_JUMP_GREATER, 1, 0, _LAST_FCNTL)]
    for call, condition in ((_CLONE, is_thread), (_PRLIMIT, is_self), (_FCNTL, is_plain)):
        body = [*condition, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | _EPERM)]
        steps += [(_JUMP_EQUAL, 0, len(body), call[column]), *body]
    steps += [(_JUMP_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERROR | _ENOSYS)]  # libc then takes clone
    steps.append((_RETURN, 0, 0, _ERROR | _EPERM))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _numbers(column: int) -> Iterator[int]:
    for entry in _CALLS.replace("\n", " ").split(","):
        number = entry.split()[1 + column]
        if number != "-":
            yield int(number)
