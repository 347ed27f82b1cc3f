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


def test_no_experts_are_a_dense_model(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL + "[model]\nnum_local_experts = 0\n").model == {"num_local_experts": None}


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + MINIMAL).train.steps == 10


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
        (MINIMAL + "[model]\nnum_local_experts = -1\n", "num_local_experts is -1"),
        (MINIMAL + "[model]\nnum_local_experts = 0\n[router]\ncapacity = 2.0\n", "this model has none"),
        (MINIMAL + 'lr = "fast"\n', "lr is 'fast'"),
        (MINIMAL + "lr = nan\n", "lr is nan"),
        (MINIMAL + "clip = true\n", "clip is True"),
        (MINIMAL + "batch = 0\n", "batch is 0"),
        (MINIMAL + 'optimizer = "lion"\n', "supported now: 'adamw'"),
        (MINIMAL + "[parallel]\nexpert = 0\n", "expert is 0, expected more than 0"),
        (MINIMAL + "[parallel]\nexpert = 3\n", "expert = 3 does not divide the 8 experts"),
        (MINIMAL + "sequence = [[0.0, 512], [0.5, 1000]]\n", "cannot be cut"),
        (MINIMAL + "sequence = [[0.5, 512]]\n", "must start at 0.0"),
        (MINIMAL + "sequence = [[0.0, 512, 3]]\n", "expected"),
        (MINIMAL + "accumulate = 3\n", "in 3 micro-batches"),
        (MINIMAL + "sequence = 40000\n", "longer than max_position_embeddings"),
        ("[data]\nfiles = [1]\n[train]\nsteps = 1\n", "files is"),
        ('[data]\nfiles = ["a"]\nweights = [1, 2]\n[train]\nsteps = 1\n', "2 numbers for 1 files"),
        (MINIMAL + "betas = [0.9]\n", "betas is .*expected an array of two numbers"),
        (MINIMAL + "betas = [0.9, 1.0]\n", r"betas is \[0.9, 1.0\], expected two numbers from 0 to below 1"),
        (MINIMAL + "warmup = -1\n", "warmup is -1, expected 0 or more"),
        (MINIMAL + "weight_decay = -0.1\n", "weight_decay is -0.1, expected 0 or more"),
        (MINIMAL + "seed = -1\n", "seed is -1, expected 0 or more"),
        (MINIMAL + "seed = 99999999999999999999\n", "seed is .*expected a whole number"),
        (MINIMAL + "lr = -inf\n", "lr is -inf, expected a finite number"),
        (MINIMAL + "steps_ = 1\n", "did you mean 'steps'"),
        (MINIMAL + "sequence = true\n", "sequence is True"),
        (MINIMAL + "sequence = [[0.0, 512.5]]\n", "sequence is .*pairs"),
        (MINIMAL + "sequence = []\n", "must start at 0.0"),
        (MINIMAL + "sequence = -8\n", "cannot be cut"),
        (MINIMAL + "[balance]\nload = -1\n", "load is -1.0, expected 0 or more"),
        (MINIMAL + "[init]\nstd = 0\n", "std is 0.0, expected more than 0"),
        (MINIMAL + "[run]\nout = 3\n", "out is 3, expected the path of a folder"),
        (MINIMAL + "[run]\nsave_every = 0\n", "save_every is 0, expected more than 0"),
        (MINIMAL + "[balance]\nbias = 0.001\n", "bias is for the router 'sigmoid_bias'"),
        (MINIMAL + "[balance]\nscope = 'batch'\n", "scope is 'batch', supported now: 'sequence', 'micro', 'global'"),
        (MINIMAL + "[balance]\nconvention = 'jax'\n", "convention is 'jax', supported now"),
        (MINIMAL + "[router]\nkind = 'topq'\n", "expected one of .*did you mean 'topk'"),
        (MINIMAL + "[router]\nkindd = 'topk'\n", "did you mean 'kind'"),
        (MINIMAL + "[router]\nkind = 'switch'\n", "set it to 1"),
        (MINIMAL + "[model]\nnum_experts_per_tok = 1\n", "the router gets no gradient"),
        (MINIMAL + "[init]\ninduction = 1\n", "induction is 1, expected true or false"),
        (MINIMAL + "[init]\ninduction = true\n[model]\nnum_hidden_layers = 1\n", "needs two layers or more"),
        ("data = 1\n", "'data' is no section"),
        ("[data]\nfiles = []\n[train]\nsteps = 1\n", "files is empty"),
        ('[data]\nfiles = "a"\n[train]\nsteps = 1\n', "files is 'a', expected an array of paths"),
        ('[data]\nfiles = [""]\n[train]\nsteps = 1\n', r"files is \[''\], expected an array of paths"),
        ('[data]\nfiles = ["a\\u0000"]\n[train]\nsteps = 1\n', "expected an array of paths"),
        ('[data]\nfiles = ["a.txt", "b/.././a.txt"]\n[train]\nsteps = 1\n', "names a file twice"),
        (
            '[data]\nfiles = ["a"]\nvalid = ["$HOME/x.txt", "b/x.txt"]\n[train]\nsteps = 1\n',
            "two files of the same name",
        ),
        ('[data]\nfiles = ["a"]\nvalid = ["$ONE", "$OTHER"]\n[train]\nsteps = 1\n', "two files of the same name"),
        ('[data]\nfiles = ["a", "b"]\nweights = [1e308, 1e308]\n[train]\nsteps = 1\n', "weights is .*shares from 0 up"),
        ('[data]\nfiles = ["a"]\ntokenizer = ""\n[train]\nsteps = 1\n', "tokenizer is '', expected the path"),
        (MINIMAL + '[run]\nout = ""\n', "out is '', expected the path of a folder"),
        (MINIMAL + f"batch = {1 << 62}\n", r"\[train\] 10 steps of 4611686018427387904 sequences are more tokens than"),
        (MINIMAL + "[router]\ncapacity = 1e300\n", r"capacity is 1e\+300, expected 0 \(no limit\) or more, at most"),
        ("[[data]]\n", r"'data' is no section; write \[data\] on a line of its own"),
        (MINIMAL + "seed = " + "1" * 5000, "cannot be read as a recipe: Exceeds the limit"),
        ("[data]\nfiles = " + "[" * 3000, "cannot be read as a recipe: maximum recursion depth"),
        ('[data]\nfiles = ["a", "a"]\n[train]\nsteps = 1\n', "names a file twice"),
        ('[data]\nfiles = ["a"]\nweights = [0]\n[train]\nsteps = 1\n', "not all 0"),
        ('[data]\nfiles = ["a", "b"]\nweights = [2, -1]\n[train]\nsteps = 1\n', "shares from 0 up"),
        ('[data]\nfiles = ["a"]\ntokenizer = {}\n[train]\nsteps = 1\n', "tokenizer is {}, expected the path"),
        ('[data]\nfiles = ["a"]\ntokenizer = { vocab = 9 }\n[train]\nsteps = 1\n', "tokenizer is"),
        ('[data]\nfiles = ["a"]\ntokenizer = { vocab_size = 9.5 }\n[train]\nsteps = 1\n', "tokenizer is"),
        ("not toml", "cannot be read as a recipe"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "/data/one/x.txt")
    monkeypatch.setenv("OTHER", "/data/other/x.txt")
    with pytest.raises((RecipeError, ConfigError), match=sentence):
        read(tmp_path, text)


def test_paths_name_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_TEST_DIR", "/data")
    assert expand_path("$COTERIE_TEST_DIR/x") == Path("/data/x")
    monkeypatch.delenv("COTERIE_TEST_DIR")
    with pytest.raises(DataError, match="not set"):
        expand_path("$COTERIE_TEST_DIR/x")
