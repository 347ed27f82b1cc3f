import sys

from coterie.train.memory import keep_freed_memory


def test_says_whether_it_could() -> None:
    import os

    on_glibc = sys.platform.startswith("linux") and "CS_GNU_LIBC_VERSION" in os.confstr_names
    assert keep_freed_memory() is on_glibc
