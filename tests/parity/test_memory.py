"""The peak of memory: the weights of a GGUF file once, and little beside them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from coterie.config import ModelConfig
from coterie.kernels import cpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LITTLE = 150_000_000  # beside weights and cache: a piece of the file, activations of 512 tokens, threads' own

# VmHWM, since ru_maxrss begins with what the parent of a new process had
_CODE = """
import sys, torch, coterie
from coterie.engine.runner import Runner

def peak():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))

from coterie.checkpoint import gguf_load  # with what loading imports, torch among it
before = peak()
lm = coterie.load(sys.argv[1], device="cpu")
runner = Runner(lm.model)
for output in runner.feed_all(0, [5] * 512):
    runner.logits(output.hidden_TD[-1:])
runner = Runner(lm.model)
runner.feed([(slot, [1]) for slot in range(32)])
for _ in range(4):
    runner.logits(runner.step([7] * 32).hidden_TD)
print(peak() - before - 2 * sum(k.nbytes for k in runner.cache.k))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(cpu.used() == "reference", reason="without native kernels a GGUF file becomes a plain model")
def test_a_gguf_file_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("synthetic", BENCHMARKS / "synthetic.py")
    assert spec is not None and spec.loader is not None
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    path = tmp_path / "x.gguf"
    sizes = {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2}
    synthetic.write_synthetic(path, ModelConfig(num_hidden_layers=6, vocab_size=4000, **sizes))
    n_bytes = path.stat().st_size
    assert n_bytes > 2 * LITTLE, "else a second copy would not be seen"
    done = subprocess.run([sys.executable, "-c", _CODE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < n_bytes + LITTLE
