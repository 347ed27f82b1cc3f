"""Work within a time: what it gives, what it raises, and that work without end is left alone."""

import threading
import time

import pytest

from coterie.engine.grammar_budget import within
from coterie.errors import ConfigError, RequestError


def test_what_the_work_gives_and_what_it_raises() -> None:
    assert within(5, lambda: 7) == 7

    def fails() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        within(5, fails)


def test_work_without_end_is_left_alone_and_two_of_it_fill_the_place() -> None:
    over = threading.Event()
    try:
        for _ in range(3):  # the third never begins
            began = time.monotonic()
            with pytest.raises(RequestError, match=r"not compiled within 0\.05 s"):
                within(0.05, lambda: over.wait(30))
            assert time.monotonic() - began < 5
    finally:
        over.set()
    assert within(10, lambda: 1) == 1


def test_the_interpreters_lock_is_free_meanwhile() -> None:
    """Others go on while a grammar is compiled; here, that the waiting thread does not spin."""
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.wait(0.001):
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    within(5, lambda: time.sleep(0.2))
    done.set()
    thread.join()
    assert counted > 5
