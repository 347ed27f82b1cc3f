"""The small recipe that commands about training are tested with, and text for it."""

from pathlib import Path

import pytest

RECIPE = """
[model]
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
num_local_experts = 4
max_position_embeddings = 64
[data]
files = ["$TEXT/a.txt"]
valid = ["$TEXT/a.txt"]
tokenizer = { vocab_size = 512 }
[train]
steps = 8
batch = 4
sequence = 32
[run]
out = "$TEXT/run"
save_every = 2
eval_every = 4
"""


@pytest.fixture
def words() -> list[str]:
    """Made-up words; texts of them have enough pieces for a vocabulary of 512."""
    return [a + b + c for a in "bdfglmnprst" for b in "aeiou" for c in ("n", "ra", "lo", "s", "t", "mi")]


@pytest.fixture
def recipe_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """r.toml in a folder that $TEXT names."""
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.setenv("TEXT", str(tmp_path))
    return tmp_path / "r.toml"
