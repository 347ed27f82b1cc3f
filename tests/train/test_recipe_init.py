"""The keys of [init]: what they read as, and which do not go together."""

from pathlib import Path

import pytest

from coterie.errors import RecipeError
from coterie.train.recipe import read_recipe


def recipe(tmp_path: Path, init: str, data: str = "", steps: int = 5) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(f'[init]\n{init}\n[data]\nfiles = ["a.txt"]\n{data}\n[train]\nsteps = {steps}\n')
    return path


def test_one_model_several_models_or_none(tmp_path: Path) -> None:
    one = read_recipe(recipe(tmp_path, 'upcycle = "a"\nmethod = "drop"\ndrop = 0.25\ngranularity = 2')).init
    assert one.upcycle == ("a",) and not one.is_random and (one.method, one.drop, one.granularity) == ("drop", 0.25, 2)
    two = read_recipe(recipe(tmp_path, 'upcycle = ["a", "b"]\nprompts = [["x", "y"], ["z"]]')).init
    assert two.upcycle == ("a", "b") and two.prompts == (("x", "y"), ("z",))
    assert read_recipe(recipe(tmp_path, 'from = "a"')).init.from_ == "a"
    assert read_recipe(recipe(tmp_path, "")).init.is_random


def test_the_tokenizer_is_the_models_unless_named(tmp_path: Path) -> None:
    assert read_recipe(recipe(tmp_path, 'from = "a"')).data.tokenizer == ""
    assert read_recipe(recipe(tmp_path, 'from = "a"', 'tokenizer = "b"')).data.tokenizer == "b"
    assert read_recipe(recipe(tmp_path, "")).data.tokenizer == {"vocab_size": 8192}


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ('method = "drop"', "method, but there is no upcycle"),
        ("router_std = 0.1", "router_std, but there is no upcycle"),
        ('from = "a"\ngranularity = 2', "granularity, but there is no upcycle"),
        ('upcycle = "a"\ndrop = 0.3', "set method to 'drop' too"),
        ('upcycle = "a"\nprompts = [["x"]]', "prompts, but upcycle names one model"),
        ('upcycle = ["a", "b"]\nmethod = "split"\nrouters = "random"', "method, but upcycle names several"),
        ('upcycle = ["a", "b"]', "prompts has 0 groups for 2 models"),
        ('upcycle = ["a", "b"]\nprompts = [["x"], [""]]', "an empty group or text"),
        (
            'upcycle = ["a", "b"]\nrouters = "random"\nprompts = [["x"], ["y"]]',
            "has prompts, which routers = 'random' does",
        ),
        (
            'upcycle = ["a", "b"]\nrouter_std = 0.5\nprompts = [["x"], ["y"]]',
            "has router_std, which routers = 'prompts'",
        ),
        ('upcycle = "a"\nmethod = "split"', "granularity 1, expected 2 segments or more"),
        ('upcycle = "a"\nmethod = "drop"\ndrop = 1.5', "drop from 0 to 1"),
        ('upcycle = "a"\ngranularity = 0', "granularity 1 or more"),
        ('upcycle = ["a", "b"]\nrouters = "promts"', "did you mean 'prompts'"),
        ('upcycle = ["a", "b"]\nshared = "last"', "shared is 'last', expected mean, first"),
        ('upcycle = ["a", ""]', "expected a path or an array of paths"),
        ("upcycle = 3", "upcycle is 3, expected a path or an array of paths"),
        ('from_ = "a"', "no key 'from_'; did you mean 'from'"),
        ('from = "a"\ninduction = true', "induction is for random weights"),
    ],
)
def test_what_does_not_go_together(init: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(recipe(tmp_path, init))


def test_no_steps_make_sense_for_a_model_that_is_there_only(tmp_path: Path) -> None:
    assert read_recipe(recipe(tmp_path, 'from = "a"', steps=0)).train.steps == 0
    with pytest.raises(RecipeError, match="steps is 0, expected more"):
        read_recipe(recipe(tmp_path, "", steps=0))
