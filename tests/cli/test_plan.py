import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.checkpoint.huggingface import save_huggingface
from coterie.cli.main import main
from coterie.config import ModelConfig
from coterie.model import Transformer
from coterie.sizes import active_parameters, parameters


@pytest.fixture
def recipe(recipe_without_text: Path) -> Path:
    (recipe_without_text.parent / "a.txt").write_text("a few words " * 20)
    return recipe_without_text


def test_json_without_a_measurement(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name for p in recipe.parent.iterdir()}
    assert main(["plan", str(recipe), "--no-measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = ModelConfig.from_fields(found["config"], where="test")
    assert config.vocab_size == 512
    assert found["parameters"] == {"total": parameters(config).total, "active": active_parameters(config).total}
    assert found["tokens"] == {"total": 1024, "steps": 8, "per_step": 128}
    assert found["seconds"] is None and found["samples"] == [] and found["not_measured"] is None
    assert found["memory"]["fits"] and not found["memory"]["is_measured"]
    assert found["text"][0]["epochs"] > 4 and any("a.txt is read" in w for w in found["warnings"])
    assert len(found["losses"]) == 2 and all(p["beyond"] for p in found["losses"])
    assert {p.name for p in recipe.parent.iterdir()} == before  # a plan leaves nothing behind


def test_a_measured_plan_as_text(recipe: Path) -> None:
    command = [sys.executable, "-m", "coterie", "plan", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for words in (
        "a sparse model, 1.02 k tokens in 8 steps", "Memory of a step, measured", "Python and torch", "highest moment",
        "a step, rows of 32", "of the matrix peak; measured with 2 layers", "in all", "estimated from its size",
        "Chinchilla, refitted (arXiv 2404.10102)", "extrapolated: ", "a rule from models", "Warning: a.txt is read",
    ):  # fmt: skip
        assert words.lower() in done.stdout.lower(), words
    assert "measuring steps of 2 of 2 layers, rows of 32" in done.stderr


def test_text_that_is_not_here_is_a_warning(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TEXT")
    assert main(["plan", str(recipe), "--no-measure"]) == 0
    out = capsys.readouterr().out
    assert "not here" in out and "Warning: the tokens of $TEXT/a.txt are not known" in out
    assert "Time: not measured\n" in out and "Memory of a step, by formula" in out


def test_a_model_that_is_written_at_once_has_no_plan(
    recipe: Path, make_model: Callable[..., Transformer], capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero steps of an upcycling were a division by zero."""
    model, folder = make_model(num_local_experts=None), recipe.parent / "dense"
    save_huggingface(folder, model.config, model.tensors(), dtype="float32")
    lines = ["[init]", f'upcycle = "{folder}"', "[model]", "num_local_experts = 4", "[data]", 'files = ["$TEXT/a.txt"]']
    recipe.write_text("\n".join([*lines, "[train]", "steps = 0", "sequence = 32"]))
    assert main(["plan", str(recipe), "--no-measure"]) == 2
    assert "steps is 0: nothing is trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 8", "stpes = 8", "has no key 'stpes'; did you mean 'steps'?"),
        ("steps = 8", "steps = 0", "[train] steps is 0"),
        ("hidden_size = 16", "hiden_size = 16", "'hiden_size' is not a field of a model"),
        ("sequence = 32", "sequence = 128", "longer than max_position_embeddings"),
        ("vocab_size = 512", "vocab_size = 300", "vocab_size is 300, expected between 512 and 65536"),
        (
            "hidden_size = 16",
            "hidden_size = 16\nvocab_size = 300",
            "vocab_size is 300 and the tokenizer has 512 pieces",
        ),
    ],
)
def test_mistakes_are_those_of_training(
    recipe: Path, old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    assert main(["plan", str(recipe)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_model_that_does_not_fit(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(
        recipe.read_text()
        .replace("hidden_size = 16", "hidden_size = 65536\nhead_dim = 64")
        .replace("size = 16\n", "size = 65536\n")
    )
    assert main(["plan", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "Time: not measured: not even one layer" in out
    assert "does not fit" in out and "needs a smaller model" in out


def test_the_recipe_of_the_model_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "recipes" / "demo.toml"
    assert main(["plan", str(path), "--no-measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["total"] == 11_549_952
