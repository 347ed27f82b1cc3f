"""Runs that start from models; whole runs are `tests/cli/test_train_origin.py`'s."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.checkpoint.convert import convert
from coterie.checkpoint.huggingface import save_huggingface
from coterie.config import ModelConfig
from coterie.errors import RecipeError
from coterie.model import Transformer
from coterie.router_config import RouterConfig
from coterie.train.origin import check_vocabulary, encode_prompts, open_origin, own_tokenizer, run_config
from coterie.train.recipe import Data, Recipe, Train
from coterie.train.recipe_init import Init


def plan(model: dict[str, Any] | None = None, router: RouterConfig | None = None, **init: Any) -> Recipe:
    train = Train(steps=1, sequence=16)
    return Recipe(
        model=model or {}, data=Data(files=("x",)), train=train, init=Init(**init), router=router or RouterConfig()
    )


def save(folder: Path, model: Transformer) -> Path:
    save_huggingface(folder, model.config, model.tensors(), dtype="float32")
    return folder


def test_training_goes_on_with_the_router_of_the_model(make_model: Callable[..., Transformer], tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_model(router={"kind": "switch"}, num_experts_per_tok=1))
    origin = open_origin(plan(from_=str(folder)))
    assert origin is not None
    assert run_config(origin, plan(from_=str(folder)), torch.float32, where="r").router.kind == "switch"
    same = RouterConfig(kind="switch", capacity=1.5)
    assert run_config(origin, plan(router=same), torch.bfloat16, where="r").router.capacity == 1.5
    with pytest.raises(RecipeError, match="kind is 'base' and the model's is 'switch'"):
        run_config(origin, plan(router=RouterConfig(kind="base")), torch.float32, where="r")


def test_what_a_recipe_does_not_say_of_the_models_router_stays(
    make_model: Callable[..., Transformer], tmp_path: Path
) -> None:
    """A capacity set the scale back to 1, and "topk_all" was another kind than the one that it had trained."""
    folder = save(tmp_path / "a", make_model(router={"kind": "sigmoid_bias", "scale": 2.5}))
    origin = open_origin(plan(from_=str(folder)))
    assert origin is not None
    asked = RouterConfig(kind="sigmoid_bias", capacity=1.5)
    router = run_config(origin, plan(router=asked), torch.float32, where="r").router
    assert router.scale == 2.5 and router.capacity == 1.5
    with pytest.raises(RecipeError, match=r"\[router\] scale is 2.0 and the model's is 2.5"):
        run_config(origin, plan(router=replace(asked, scale=2.0)), torch.float32, where="r")
    origin = open_origin(plan(from_=str(save(tmp_path / "b", make_model(norm_topk_prob=False)))))
    assert origin is not None
    for kind in ("topk_all", "topk"):
        config = run_config(origin, plan(router=RouterConfig(kind=kind, jitter=0.1)), torch.float32, where="r")
        assert config.router.jitter == 0.1 and not config.norm_topk_prob


def test_rows_longer_than_the_context_are_refused(make_model: Callable[..., Transformer], tmp_path: Path) -> None:
    origin = open_origin(plan(from_=str(save(tmp_path / "a", make_model(max_position_embeddings=8)))))
    assert origin is not None
    with pytest.raises(RecipeError, match="sequence 16 is longer than max_position_embeddings 8"):
        run_config(origin, plan(), torch.float32, where="r.toml")


def test_a_gguf_file_needs_a_tokenizer_named(make_model: Callable[..., Transformer], tmp_path: Path) -> None:
    folder = save(tmp_path / "a", make_model(num_local_experts=None))
    convert(folder, tmp_path / "b.gguf", to="gguf", type="f32")
    recipe = plan({"num_local_experts": 4}, upcycle=(str(tmp_path / "b.gguf"),))
    origin = open_origin(recipe)
    assert origin is not None and run_config(origin, recipe, torch.float32, where="r").num_local_experts == 4
    with pytest.raises(RecipeError, match="name the folder of its tokenizer"):
        own_tokenizer(origin)


def test_random_routers_of_a_merge(make_model: Callable[..., Transformer], tmp_path: Path) -> None:
    folders = [save(tmp_path / str(seed), make_model(seed, num_local_experts=None)) for seed in range(3)]
    recipe = plan(upcycle=tuple(map(str, folders)), routers="random", router_std=0.5)
    origin = open_origin(recipe)
    assert origin is not None
    model = Transformer(run_config(origin, recipe, torch.float32, where="r"), torch.float32)
    assert "their routers are random" in origin.fill(model, None)  # type: ignore[arg-type]
    assert float(model.tensors()["layers.2.moe.router"].std()) == pytest.approx(0.5, rel=0.2)


def test_a_merge_into_a_soft_router_and_prompts_without_text(
    make_model: Callable[..., Transformer], tmp_path: Path
) -> None:
    """A row of each expert for every slot of it; an empty file was a fault of ours."""
    folders = [save(tmp_path / str(seed), make_model(seed, num_local_experts=None)) for seed in range(2)]
    soft, empty = RouterConfig(kind="soft", slots=3), str(tmp_path / "empty.txt")
    Path(empty).write_text("")
    for prompts in ((("ab",), ("c",)), (("ab",), (empty,))):
        recipe = plan(router=soft, upcycle=tuple(map(str, folders)), prompts=prompts)
        origin = open_origin(recipe)
        assert origin is not None
        model = Transformer(run_config(origin, recipe, torch.float32, where="r"), torch.float32)
        if empty in prompts[1]:
            with pytest.raises(RecipeError, match=r"there is no text in .*empty\.txt"):
                origin.fill(model, Counting(259))  # type: ignore[arg-type]
        else:
            origin.fill(model, Counting(259))  # type: ignore[arg-type]
            rows = model.tensors()["layers.1.moe.router"]
            assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[2], rows[3])


class Counting:
    """A tokenizer of so many pieces."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str, *, bos: bool = False) -> Sequence[int]:
        return [1] * bos + [3] * len(text)


def test_vocabularies(tmp_path: Path, sentencepiece_bytes: bytes) -> None:
    """The model has 352 rows, its own tokenizer 340 pieces."""
    config, other = ModelConfig(vocab_size=352), tmp_path / "other"
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    check_vocabulary(config, Counting(340), tmp_path, tmp_path)  # type: ignore[arg-type]
    check_vocabulary(config, Counting(340), tmp_path, other)  # type: ignore[arg-type]
    for n in (353, 300):
        with pytest.raises(RecipeError, match=f"has {n} pieces"):
            check_vocabulary(config, Counting(n), tmp_path, other)  # type: ignore[arg-type]


def test_prompts_are_texts_or_the_first_of_a_file(tmp_path: Path) -> None:
    config = replace(ModelConfig(), max_position_embeddings=20)
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"text": "{"x" * n}"}}' for n in range(1, 31)))
    found = encode_prompts(["four", str(tmp_path / "a.jsonl"), "y" * 99], Counting(9), config)  # type: ignore[arg-type]
    assert [len(ids) for ids in found] == [5, *range(2, 18), 20] and all(ids[0] == 1 for ids in found)
