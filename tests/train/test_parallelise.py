"""A model divided among ranks learns what the whole one learns: the same 30 steps, the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TINY, meeting, on_ranks, tiny_trainer

from coterie.config import ModelConfig
from coterie.errors import RecipeError
from coterie.train.mesh import Mesh
from coterie.train.recipe import Balance
from coterie.train.shards import read_shards
from coterie.train.state import checkpoint_folder

MUON = {"optimizer": "muon", "accumulate": 2, "batch": 8, "recompute": True}
LAYOUTS_OF_2: list[tuple[int, int, dict[str, Any]]] = [(2, 1, {}), (1, 2, {}), (2, 1, MUON), (1, 2, MUON)]


def train(out: Path, mesh: Mesh | None, train: dict[str, Any], dtype: torch.dtype = torch.float64) -> None:
    balance = Balance(load=0.1, z=0.01, scope="sequence" if train else "global")
    tiny_trainer(out, mesh, dtype, balance=balance, **train).run()


def name(data: int, expert: int, train: dict[str, Any]) -> str:
    return f"{data}-{expert}-{train.get('optimizer', 'adamw')}"


def train_layouts(folder: Path, layouts: list[tuple[int, int, dict[str, Any]]], dtype: torch.dtype) -> None:
    for data, expert, options in layouts:
        with meeting(data, expert) as mesh:
            train(folder / name(data, expert, options), mesh, options, dtype)


def largest_differences(a: Path, b: Path) -> tuple[float, float]:
    """Of the weights after the last step, and of the losses of all steps."""
    first, second = (read_shards(checkpoint_folder(run, 30)) for run in (a, b))
    assert first.keys() == second.keys()
    weights = max(float((first[n] - second[n]).abs().max()) for n in first if n.startswith("master/"))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (a, b)]
    keys = ("loss", "balance", "balance_exact", "z", "grad_norm")
    losses = [abs(x[key] - y[key]) for x, y in zip(*logs, strict=True) for key in keys]
    assert [x["valid"] for x in logs[0] if "valid" in x]
    losses += [abs(x["valid"]["x"] - y["valid"]["x"]) for x, y in zip(*logs, strict=True) if "valid" in x]
    return weights, max(losses)


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    """Data and expert parallelism; AdamW at once, and Muon with micro-batches and blocks that are recomputed."""
    on_ranks(2, train_layouts, tmp_path, LAYOUTS_OF_2, torch.float64)
    for options in ({}, MUON):
        train(tmp_path / name(1, 1, options), None, options)
    for data, expert, options in LAYOUTS_OF_2:
        weights, losses = largest_differences(tmp_path / name(1, 1, options), tmp_path / name(data, expert, options))
        assert weights < 1e-8 and losses < 1e-8, (data, expert, options, weights, losses)


def test_four_ranks_two_by_two_learn_what_one_learns(tmp_path: Path) -> None:
    """Experts divided among pairs of ranks, and each again among the pairs; two ranks hold nothing of the router."""
    few = {"config": ModelConfig.from_fields(TINY.to_fields() | {"num_local_experts": 2}, where="test")}
    on_ranks(4, train_layouts, tmp_path, [(2, 2, few)], torch.float64)
    train(tmp_path / name(1, 1, few), None, few)
    weights, losses = largest_differences(tmp_path / name(1, 1, few), tmp_path / name(2, 2, few))
    assert weights < 1e-8 and losses < 1e-8, (weights, losses)


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, MUON], ids=["adamw", "muon"])
def test_four_ranks_with_more_experts_and_muon(tmp_path: Path, options: dict[str, Any]) -> None:
    on_ranks(4, train_layouts, tmp_path, [(2, 2, options)], torch.float64)
    train(tmp_path / name(1, 1, options), None, options)
    weights, losses = largest_differences(tmp_path / name(1, 1, options), tmp_path / name(2, 2, options))
    assert weights < 1e-8 and losses < 1e-8, (weights, losses)


def kinds_of_models() -> dict[str, tuple[ModelConfig, Balance]]:
    def config(**fields: Any) -> ModelConfig:
        return ModelConfig.from_fields(TINY.to_fields() | fields, where="test")

    even = Balance(load=0.1, z=0.01)
    return {
        "bias": (config(router={"kind": "sigmoid_bias"}), Balance(load=0.0, bias=0.01)),
        "hash": (config(router={"kind": "hash"}), even),
        "tied, window": (config(tie_word_embeddings=True, sliding_window=8), even),
        "dense": (config(num_local_experts=None), even),
        "soft": (config(router={"kind": "soft"}, num_experts_per_tok=4), even),
    }


def train_kinds(folder: Path, dtype: torch.dtype) -> None:
    for name, (config, balance) in kinds_of_models().items():
        with meeting(0, 1 if name in ("dense", "soft") else 2) as mesh:
            trainer = tiny_trainer(folder / name, mesh, dtype, config=config, balance=balance, steps=4)
            trainer.run()
            whole = trainer.whole_model()
            assert (whole is None) == (mesh.rank == 1)
            if whole is not None:
                torch.save(dict(whole.state_dict()), folder / f"{name}.pt")


def test_every_kind_of_model_is_divided_and_put_together(tmp_path: Path) -> None:
    """The soft router mixes the tokens of a sequence, or of a pass: it is not the same when a pass is smaller."""
    on_ranks(2, train_kinds, tmp_path, torch.float64)
    for name, (config, balance) in kinds_of_models().items():
        alone = tiny_trainer(tmp_path / "alone", None, torch.float64, config=config, balance=balance, steps=4)
        alone.run()
        whole = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert whole.keys() == alone.model.state_dict().keys()
        for key, tensor in alone.model.state_dict().items():
            assert whole[key].dtype == tensor.dtype and whole[key].shape == tensor.shape, (name, key)
            if name != "soft":
                torch.testing.assert_close(whole[key], tensor, atol=1e-8, rtol=0, msg=f"{name} {key}")


def train_bfloat16(folder: Path) -> None:
    with meeting(1, 2) as mesh:
        trainer = tiny_trainer(folder, mesh, torch.bfloat16, steps=6)
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        trainer.run()
        whole = trainer.whole_model()
        if whole is not None:
            assert whole.dtype == torch.bfloat16 and whole.layers[0].feed_forward.router.weight.dtype == torch.float32


def test_products_in_bfloat16_masters_and_router_in_float32(tmp_path: Path) -> None:
    on_ranks(2, train_bfloat16, tmp_path / "two")
    tiny_trainer(tmp_path / "one", None, torch.bfloat16, steps=6).run()
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    )
    assert one == pytest.approx(two, abs=0.03)


def refuse(folder: Path) -> None:
    soft = kinds_of_models()["soft"][0]
    with meeting(1, 2) as mesh:
        with pytest.raises(RecipeError, match="the router 'soft' mixes tokens"):
            tiny_trainer(folder, mesh, config=soft)
        with pytest.raises(RecipeError, match="a micro-batch has 1 sequence, which 2 ranks"):
            tiny_trainer(folder, mesh, batch=4, accumulate=4)


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    on_ranks(2, refuse, tmp_path)
