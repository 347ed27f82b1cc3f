"""Importance measured a layer at a time is that of the whole model in one pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coterie.checkpoint.calibrate import measure_importance
from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.packed import open_packed
from coterie.errors import DataError
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.quant.importance import Importance, observe

MakeModel = Callable[..., Transformer]


@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": True, "sliding_window": 64}, {"num_local_experts": None}]
)
def test_layer_by_layer_is_all_at_once(make_model: MakeModel, fields: dict[str, object], tmp_path: Path) -> None:
    model = make_model(**fields)
    save_huggingface(tmp_path / "m", model.config, model.tensors(), dtype="float32")
    ids = torch.randint(3, 259, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    seen: list[tuple[int, int]] = []
    found = measure_importance(open_checkpoint(tmp_path / "m"), ids, lambda *n: seen.append(n))
    assert seen == sorted(seen) and seen[-1][0] <= seen[-1][1]
    whole, at = Importance(), torch.arange(200)
    for i, block in enumerate(model.layers):
        observe(block, f"layers.{i}", whole)
    with torch.inference_mode():
        out = model(torch.tensor([1, *ids[:-1]]), at, WholeSequences(1, model.config.sliding_window))
        whole.add("embed" if model.config.tie_word_embeddings else "head", model.head.norm(out.hidden_TD))
    assert found.counts == whole.counts
    for name, sums in whole.sums.items():
        assert torch.allclose(found.sums[name], sums, rtol=1e-4), name


def test_a_text_is_needed(tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        measure_importance(open_checkpoint(tiny_folder), [])


def test_the_file_tells_of_the_text_and_of_experts_that_saw_too_little(make_model: MakeModel, tmp_path: Path) -> None:
    model, said = make_model(hidden_size=64, intermediate_size=64), list[str]()
    save_huggingface(tmp_path / "m", model.config, model.tensors(), dtype="float32")
    ids, seen = list(range(3, 250)), list[tuple[int, int]]()
    convert(
        tmp_path / "m",
        tmp_path / "p",
        to="packed",
        type="int4",
        calibration=ids,
        notice=said.append,
        progress=lambda *n: seen.append(n),
    )
    told = open_packed(tmp_path / "p").about["calibration"]
    assert told["tokens"] == len(ids) and sum(told["coverage"]["layers.0"]) == 2 * len(ids)
    few = [n for layer in told["coverage"].values() for n in layer if n < told["enough"]]
    assert len(told["unweighted"]) == len(few) > 0
    assert f"{len(few)} experts saw fewer than 128 tokens" in said[0] and told["unweighted"][0] in said[0]
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert "weighed by 247 tokens" in (tmp_path / "p" / "README.md").read_text()
