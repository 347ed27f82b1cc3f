import signal
import threading

import pytest

from coterie.train.interrupt import interrupt_later


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
