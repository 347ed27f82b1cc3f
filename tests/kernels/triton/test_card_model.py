"""A packed model through the kernels, on a card or interpreted, against the same model without them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import card_load
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import save_huggingface
from coterie.engine.runner import Runner
from coterie.kernels import gpu
from coterie.model import Transformer


@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_a_packed_model(
    make_model: Callable[..., Transformer],
    tmp_path: Path,
    kind: str,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(card_load, "_activations", lambda name, device: torch.float32)
    plain = make_model(hidden_size=64, intermediate_size=32, num_hidden_layers=1, vocab_size=60)
    save_huggingface(tmp_path / "m", plain.config, plain.tensors(), dtype="float32")
    model = card_load.load_quantised_on_card(open_checkpoint(tmp_path / "m"), kind, "auto", device)
    found = []
    for context in (gpu.interpreted, gpu.without):
        with context():
            runner = Runner(model)
            read = runner.logits(runner.feed([(0, [1, 5, 9, 2, 7])]).hidden_TD).clone()
            step = runner.logits(runner.step([3]).hidden_TD).clone()
            found.append(torch.cat((read, step)).float().cpu())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-4
