"""Training on a CUDA card beside the CPU: the same losses, recompute and all, and no waiting within a step."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from coterie import device as device_module
from coterie.config import ModelConfig
from coterie.kernels import gpu_training
from coterie.model import Transformer
from coterie.train.initialise import initialise
from coterie.train.objective import Objective
from coterie.train.optim import MasterOptimizer
from coterie.train.recipe import Balance
from coterie.train.recompute import recompute_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")

SMALL = ModelConfig(
    vocab_size=300, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256, rope_theta=1e4,
)  # fmt: skip

RECIPE = """
[model]
hidden_size = 32
intermediate_size = 40
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
num_local_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 128

[data]
files = ["$TEXT/a.txt"]
valid = ["$TEXT/a.txt"]
tokenizer = { vocab_size = 512 }

[train]
steps = 12
batch = 4
sequence = 64
lr = 1e-3
warmup = 2
dtype = "float32"

[balance]
load = 0.01

[run]
out = "$TEXT/run"
eval_every = 6
save_every = 6
"""


class Steps:
    """Steps of a small model, with the trainer's pieces."""

    def __init__(self, kind: str, dtype: torch.dtype, *, recompute: bool = False, documents: bool = False):
        self.device, self.documents_BS = torch.device(kind), None
        model = Transformer(SMALL, dtype, self.device)
        initialise(model, std=0.05, seed=0)
        self.model = recompute_blocks(model) if recompute else model
        self.objective = Objective(self.model, Balance(load=0.01, z=0.001))
        self.optimizer = MasterOptimizer(self.model, betas=(0.9, 0.95), weight_decay=0.1)
        self.generator = torch.Generator(self.device).manual_seed(0)
        g = torch.Generator().manual_seed(0)
        self.ids_BS = torch.randint(3, 300, (4, 64), generator=g).to(self.device)
        self.ids_BS[:, 1::2] = (self.ids_BS[:, ::2] * 7 + 1) % 300  # something to learn
        if documents:
            self.documents_BS = (torch.arange(64, device=self.device) // 20).expand(4, 64).contiguous()

    def gradients(self) -> None:
        targets_BS = self.ids_BS.roll(-1, 1)
        self.objective.start_step()
        self.objective.backward(
            self.ids_BS, targets_BS, self.documents_BS, n_tokens=256, share=1.0, generator=self.generator
        )

    def losses(self, n: int) -> list[float]:
        found = []
        for _ in range(n):
            self.gradients()
            found.append(self.objective.measures()["loss"])
            found.append(self.optimizer.step(3e-3, 1.0))
        return found


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_norms_in_float32_are_those_of_the_cpu(recompute: bool, documents: bool) -> None:
    expected, got = (
        Steps(kind, torch.float32, recompute=recompute, documents=documents).losses(20) for kind in ("cpu", "cuda")
    )
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_bfloat16_learns_as_float32_does(recompute: bool) -> None:
    exact = Steps("cuda", torch.float32).losses(40)[::2]
    steps = Steps("cuda", torch.bfloat16, recompute=recompute)
    experts = steps.model.layers[0].get_submodule("feed_forward.experts")
    x = torch.zeros(4, 64, dtype=torch.bfloat16, device="cuda")
    has_grouped = gpu_training.has_grouped_products(x, experts.get_parameter("gate_up"), experts.get_parameter("down"))
    assert has_grouped == (torch.cuda.get_device_capability() >= (9, 0))
    got = steps.losses(40)[::2]
    assert got[-1] < 0.9 * got[0] and got == pytest.approx(exact, rel=0.05)


@contextmanager
def _nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_forward_and_backward_wait_for_nothing(recompute: bool) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no grouped products")
    steps = Steps("cuda", torch.bfloat16, recompute=recompute)
    steps.losses(2)
    with _nothing_waits():
        steps.gradients()


def test_moments_saved_on_a_card_go_on_anywhere() -> None:
    first = Steps("cuda", torch.float32)
    first.losses(3)
    state = {name: t.to("cpu", copy=True) for name, t in first.optimizer.state().items()}
    expected = first.losses(3)
    for kind in ("cuda", "cpu"):
        second = Steps(kind, torch.float32)
        second.optimizer.load_state(state)
        assert second.losses(3) == pytest.approx(expected, rel=1e-4)


def test_a_recipe_trains_on_a_card_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`coterie train` whole: vocabulary, tokens, steps, a stop and a resume, scores, the model's folder."""
    for needed in ("rich", "sentencepiece", "click"):
        pytest.importorskip(needed)
    from coterie.cli.main import main

    words = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in ("n", "ra", "lo", "s", "t", "mi")]
    text = "\n".join(f"{w} {words[-i]} {words[i // 3]} saw {w}{words[i // 2]} at {i}." for i, w in enumerate(words)) * 2
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.setenv("TEXT", str(tmp_path))
    logs, scores = [], []
    for kind in ("cuda", "cpu"):
        monkeypatch.setattr(device_module, "choose_device", lambda name="auto", kind=kind: torch.device(kind))
        out = tmp_path / kind
        for stop in (["--steps", "5"], []):
            assert main(["train", str(tmp_path / "r.toml"), "--out", str(out), *stop]) == 0
        logs.append([json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()])
        scores.append(json.loads((out / "scores.json").read_text())["a.txt"]["bits_per_byte"])
        assert (out / "model" / "config.json").exists()
    assert len(logs[0]) == 12 and logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
