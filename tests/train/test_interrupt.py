import signal
import threading

import pytest
from ranks import meeting, on_ranks

from coterie.train.interrupt import interrupt_later, interrupt_together
from coterie.train.mesh import Mesh


def test_ctrl_c_waits_for_the_end_and_the_handler_comes_back() -> None:
    before, done = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is before


def test_a_handled_kill_waits_too_and_the_first_signal_counts() -> None:
    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before, done = signal.signal(signal.SIGTERM, stop), False
    try:
        with pytest.raises(SystemExit) as caught, interrupt_later():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done = True
        assert done and caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_signal_nothing_happens_and_errors_pass() -> None:
    with interrupt_later():
        pass
    with pytest.raises(ZeroDivisionError), interrupt_later():
        raise ZeroDivisionError


def test_works_outside_the_main_thread() -> None:
    done = []

    def work() -> None:
        with interrupt_later():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_alone_an_interrupt_is_raised_where_it_arrives() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_together(Mesh.single()) as interrupted:
        interrupted()
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")


def stop_together() -> None:
    """The signal comes to rank 1 alone; both find it at the same point, and have their handlers back."""
    with meeting(2, 1) as mesh:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), interrupt_together(mesh) as interrupted:
            interrupted()
            if mesh.rank == 1:
                signal.raise_signal(signal.SIGTERM)
            interrupted()
            raise AssertionError("not reached")
        assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_of_one_rank_stops_all_at_one_point() -> None:
    on_ranks(2, stop_together)
