from pathlib import Path

import pytest

from coterie.errors import ConfigError, DataError, RecipeError
from coterie.train.recipe import Recipe, expand_path, read_recipe

MINIMAL = '[data]\nfiles = ["a.txt"]\n[train]\nsteps = 10\n'
RECIPES = Path(__file__).parents[2] / "recipes"


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return read_recipe(path)


def test_minimal_recipe_has_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, MINIMAL)
    assert recipe.train.schedule == "linear" and recipe.balance.load == 0.01 and recipe.sequence_plan() == [(0, 512)]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.name)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert read_recipe(path).train.steps > 0


def test_whole_numbers_pass_for_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL + "lr = 1\n").train.lr == 1.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"no section \[data\]"),
        ('[data]\nfiles = ["a"]\n', r"no section \[train\]"),
        ("[data]\n[train]\nsteps = 1\n", r"\[data\] needs the key 'files'"),
        (MINIMAL + "warm_up = 5\n", "'warm_up'; did you mean 'warmup'"),
        (MINIMAL + "[optim]\n", "'optim' is not a section"),
        (MINIMAL + "[model]\nhidden_sise = 3\n", "did you mean 'hidden_size'"),
        (MINIMAL + "[model]\nnum_local_experts = 0\n", "num_local_experts is 0"),
        (MINIMAL + 'lr = "fast"\n', "lr is 'fast'"),
        (MINIMAL + "lr = nan\n", "lr is nan"),
        (MINIMAL + "clip = true\n", "clip is True"),
        (MINIMAL + "batch = 0\n", "batch is 0"),
        (MINIMAL + 'optimizer = "lion"\n', "supported now: 'adamw'"),
        (MINIMAL + "[parallel]\nexpert = 8\n", "expert is 8"),
        (MINIMAL + "sequence = [[0.0, 512], [0.5, 1000]]\n", "cannot be cut"),
        (MINIMAL + "sequence = [[0.5, 512]]\n", "must start at 0.0"),
        (MINIMAL + "sequence = [[0.0, 512, 3]]\n", "expected"),
        (MINIMAL + "accumulate = 3\n", "in 3 micro-batches"),
        (MINIMAL + "sequence = 40000\n", "longer than max_position_embeddings"),
        ("[data]\nfiles = [1]\n[train]\nsteps = 1\n", "files is"),
        ('[data]\nfiles = ["a"]\nweights = [1, 2]\n[train]\nsteps = 1\n', "2 numbers for 1 files"),
        ("not toml", "cannot be read as a recipe"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises((RecipeError, ConfigError), match=sentence):
        read(tmp_path, text)


def test_paths_name_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_TEST_DIR", "/data")
    assert expand_path("$COTERIE_TEST_DIR/x") == Path("/data/x")
    monkeypatch.delenv("COTERIE_TEST_DIR")
    with pytest.raises(DataError, match="not set"):
        expand_path("$COTERIE_TEST_DIR/x")
