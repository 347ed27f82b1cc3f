"""A model divided among ranks learns what the whole one learns: the same 30 steps, the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
from ranks import meeting, on_ranks, tiny_trainer

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
    """Experts divided among pairs of ranks, and each again among the pairs."""
    on_ranks(4, train_layouts, tmp_path, [(2, 2, {}), (2, 2, MUON)], torch.float64)
    for options in ({}, MUON):
        train(tmp_path / name(1, 1, options), None, options)
        weights, losses = largest_differences(tmp_path / name(1, 1, options), tmp_path / name(2, 2, options))
        assert weights < 1e-8 and losses < 1e-8, (options, weights, losses)
