"""The filter is read as the kernel reads it: by a small machine for its six instructions."""

import struct

import pytest

from coterie.eval.seccomp import ARCHITECTURES, build_filter

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def decide(filter_: bytes, number: int, architecture: int, *arguments: int) -> int:
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", filter_))
    place = value = 0
    while True:
        code, if_true, if_false, k = steps[place]
        place += 1
        if code == 0x06:
            return int(k)
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
            continue
        is_true = {0x15: value == k, 0x25: value > k, 0x45: bool(value & k)}[code]
        place += if_true if is_true else if_false


X86, ARM = ARCHITECTURES["x86_64"][1], ARCHITECTURES["aarch64"][1]


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (0, (), ALLOW),  # read
        (9, (), ALLOW),  # mmap
        (41, (), EPERM),  # socket
        (57, (), EPERM),  # fork
        (59, (), EPERM),  # execve
        (62, (), EPERM),  # kill
        (90, (), EPERM),  # chmod
        (101, (), EPERM),  # ptrace
        (425, (), EPERM),  # io_uring_setup
        (56, (0x11,), EPERM),  # clone of a process
        (56, (0x3D0F00,), ALLOW),  # of a thread
        (435, (), ENOSYS),  # clone3
        (302, (0,), ALLOW),  # prlimit64 of itself
        (302, (1234,), EPERM),  # and of another
        (72, (3, 2), ALLOW),  # fcntl F_SETFD
        (72, (3, 1030), ALLOW),  # F_DUPFD_CLOEXEC
        (72, (3, 8), EPERM),  # F_SETOWN
        (72, (3, 15), EPERM),  # F_SETOWN_EX
        (0x40000000, (), EPERM),  # the numbers of x32
    ],
)
def test_what_x86_may_call(number: int, arguments: tuple[int, ...], expected: int) -> None:
    assert decide(build_filter("x86_64"), number, X86, *arguments) == expected


def test_another_architecture_has_its_own_numbers_and_no_way_into_the_other_filter() -> None:
    arm = build_filter("aarch64")
    assert decide(arm, 63, ARM) == ALLOW and decide(arm, 198, ARM) == EPERM and decide(arm, 220, ARM, 0x11) == EPERM
    assert decide(arm, 63, X86) == KILL and decide(build_filter("x86_64"), 0, ARM) == KILL
