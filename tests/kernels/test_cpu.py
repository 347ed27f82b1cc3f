"""Choosing the native kernels, and what surrounds them: threads, forks, errors, machines without them."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from coterie.errors import RequestError
from coterie.kernels import cpu, cpu_choice, is_native, linear
from coterie.quant.formats import FORMATS

NATIVE = [name for name in cpu.names() if name != "reference"]
needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")

PRODUCT = """
import multiprocessing, os, sys, threading, torch
from coterie.kernels import cpu
torch.set_num_threads(2)
torch.manual_seed(0)
weight, x = torch.randn(400, 64), torch.randn(50, 64)
def product():
    return cpu.plain_linear(x, weight)
y = product()
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own; one that hangs is ended and fails the test."""
    return subprocess.run([sys.executable, "-c", PRODUCT + script], capture_output=True, text=True, timeout=60)


def test_the_reference_is_always_there_and_last() -> None:
    assert cpu.names()[-1] == "reference" and cpu.used() in cpu.names()
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    with cpu.use("reference"), torch.inference_mode():
        assert cpu.used() == "reference" and not is_native(x)
        assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))


@needs_native
@pytest.mark.parametrize("name", NATIVE)
def test_one_instruction_set_for_a_while(name: str) -> None:
    before = cpu.used()
    with cpu.use(name):
        assert cpu.used() == name == cpu_choice.state().module.chosen()
        with cpu.use("reference"):
            assert cpu.used() == "reference"
        assert cpu.used() == name == cpu_choice.state().module.chosen()
    assert cpu.used() == before


def test_it_is_given_back_after_an_error() -> None:
    before = cpu.used()
    with pytest.raises(ZeroDivisionError), cpu.use("reference"):
        _ = 1 / 0
    assert cpu.used() == before
    with pytest.raises(RequestError), cpu.use("sse2"):
        raise AssertionError("never reached")
    assert cpu.used() == before


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(RequestError, match=r"'referenc' are not there.*reference.*did you mean"), cpu.use("referenc"):
        pass


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    with cpu.use(cpu.used()):  # the module's choice is restored
        for name in cpu.names():
            monkeypatch.setenv("COTERIE_KERNELS", name)
            assert cpu_choice.State().name == name
        monkeypatch.setenv("COTERIE_KERNELS", "")
        assert cpu_choice.State().name == cpu.names()[0]
        monkeypatch.setenv("COTERIE_KERNELS", "avx")
        with pytest.raises(RequestError, match="'avx' are not there"):
            cpu_choice.State()


def test_an_unknown_name_in_the_environment_is_a_clear_error() -> None:
    script = "import sys; from coterie.cli.main import main; sys.exit(main(['generate', 'x', '--max-tokens', '1']))"
    environment = {**os.environ, "COTERIE_KERNELS": "avx1024"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "'avx1024' are not there, expected one of" in done.stderr


def test_what_the_kernels_take() -> None:
    x = torch.randn(2, 4)
    with torch.inference_mode():
        assert is_native(x) == bool(NATIVE)
        assert not is_native(x.double()) and not is_native(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_native(x)
    assert not is_native(x)  # a gradient may be asked for


@needs_native
@pytest.mark.parametrize("n_threads", [1, 3])
def test_several_callers_at_once(n_threads: int) -> None:
    """Each waits for its turn; every result is right."""
    script = f"""
torch.set_num_threads({n_threads})
wrong = []
def call(i):
    torch.set_num_threads({n_threads})
    own = cpu.plain_linear(x[i:i + 30].contiguous(), weight)
    for _ in range(60):
        if not torch.equal(own, y[i:i + 30]) or not torch.equal(product(), y):
            wrong.append(i)
        own = cpu.plain_linear(x[i:i + 30].contiguous(), weight)
threads = [threading.Thread(target=call, args=(i,)) for i in (0, 7, 20)]
[t.start() for t in threads]
[t.join() for t in threads]
print(wrong)
"""
    done = run(script)
    assert done.stdout.strip() == "[]", done.stderr


@needs_native
def test_pythons_lock_is_free_meanwhile() -> None:
    """Another thread runs while a product is being computed."""
    weight, x, ticks = torch.randn(2000, 1024), torch.randn(512, 1024), []
    started = threading.Event()

    def work() -> None:
        started.set()
        with torch.inference_mode():
            cpu.plain_linear(x, weight)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    assert len(ticks) > 2


@needs_native
def test_forked_children() -> None:
    """They have none of their parent's threads: they make their own, or end without waiting for those."""
    script = """
for computes in (True, False):
    for ending in (os._exit, sys.exit):
        if os.fork() == 0:
            print(not computes or torch.equal(product(), y), flush=True)
            ending(0)
        pid, status = os.wait()
        print(status == 0 and torch.equal(product(), y), flush=True)
"""
    done = run(script)
    assert done.stdout.split() == ["True"] * 8, done.stderr


@needs_native
def test_a_pool_of_forked_processes() -> None:
    script = """
def work(i):
    return torch.equal(product(), y)
with multiprocessing.get_context("fork").Pool(2) as processes:
    print(all(processes.map(work, range(8))), torch.equal(product(), y))
"""
    done = run(script)
    assert done.stdout.split() == ["True", "True"], done.stderr


@needs_native
def test_a_fork_while_another_thread_computes() -> None:
    """The lock of a call that will never end in the child must not be waited for there."""
    script = """
large_weight, large = torch.randn(4000, 1024), torch.randn(800, 1024)
def busy():
    for _ in range(3):
        cpu.plain_linear(large, large_weight)
thread = threading.Thread(target=busy)
thread.start()
for _ in range(4):
    if os.fork() == 0:
        print(torch.equal(product(), y), flush=True)
        os._exit(0)
    os.wait()
thread.join()
print(torch.equal(product(), y))
"""
    done = run(script)
    assert done.stdout.split() == ["True"] * 5, done.stderr


def test_without_the_module_everything_is_the_reference() -> None:
    """As on a machine without a C++ compiler."""
    script = """
import sys
sys.modules["coterie._native"] = None
from coterie.kernels import cpu, linear
import torch
print(*cpu.names(), cpu.used(), cpu.can_hold([torch.zeros(2, 2)]))
with torch.inference_mode():
    print(linear(torch.ones(1, 2), torch.ones(1, 2)).item())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["reference", "reference", "False", "2.0"], done.stderr


@needs_native
def test_memory_is_checked_before_its_address_is_taken() -> None:
    weight = torch.randn(8, 32)
    with pytest.raises(AssertionError):
        cpu.rms_norm(weight.T, torch.ones(8), 1e-5)
    with pytest.raises(AssertionError):
        cpu.plain_linear(torch.randn(2, 16), weight)
    with pytest.raises(AssertionError):
        cpu.add(weight, weight[:4])
    with pytest.raises(AssertionError):
        cpu.matrix_handle([weight.T])
    with pytest.raises(ValueError, match="repack"):
        cpu.repack(cpu.ggml_matrix(FORMATS["q4_0"], 16, 32, 0), torch.zeros(3, dtype=torch.uint8))
