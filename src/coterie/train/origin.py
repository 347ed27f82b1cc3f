"""What a run starts from, where that is not random weights: a model trained on, one upcycled, several merged.

Each kind knows the configuration that follows, fills a model, and says what was done. The optimizer and the learning
rate always start anew: a schedule that stayed at its end hardly trains new experts (arXiv 2410.07524, section 4).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from coterie.checkpoint.by_name import TensorReader
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.hub import find_model
from coterie.checkpoint.opened import Checkpoint
from coterie.config import ModelConfig
from coterie.errors import RecipeError
from coterie.model import Transformer
from coterie.router_config import RouterConfig
from coterie.tokenizer.load import load_tokenizer, tokenizer_files
from coterie.tokenizer.protocol import Tokenizer
from coterie.train.certificate import Certificate, certify
from coterie.train.merge import PromptRouters, Tensors, embedding_routers, merge, merged_config, prompt_routers
from coterie.train.recipe import Recipe, expand_path, require_context, require_router
from coterie.train.recipe_init import Init
from coterie.train.texts import files_below, read_files
from coterie.train.upcycle import Upcycling, random_router, sparse_config, upcycle

__all__ = [
    "Continued",
    "Merged",
    "Origin",
    "Upcycled",
    "check_vocabulary",
    "open_origin",
    "own_tokenizer",
    "run_config",
]

_FILES = (".txt", ".jsonl", ".parquet", ".gz", ".zst")  # how a prompt ends that names a file
_PROMPTS_OF_A_FILE, _PROMPT_TOKENS = 16, 512


@dataclass(frozen=True)
class Continued:
    """[init] from: the weights of a model as they are."""

    checkpoint: Checkpoint
    granularity = 1

    @property
    def folder(self) -> Path:
        """Whose tokenizer the run takes."""
        return self.checkpoint.path

    def config(self, recipe: Recipe, *, where: str) -> ModelConfig:
        known = self.checkpoint.config
        router = self._router(recipe.router, where)
        ModelConfig.from_fields(known.to_fields() | recipe.model, where=f"{where}: [model]")  # names unknown fields
        has = known.to_fields()
        for key, value in recipe.model.items():
            if key != "torch_dtype" and value != has[key]:
                raise RecipeError(
                    f"{where}: [model] {key} is {value!r} and {self.folder} has {has[key]!r}; leave it out"
                )
        return replace(known, router=router)

    def _router(self, asked: RouterConfig, where: str) -> RouterConfig:
        """The model's own, with what the recipe says of training: numbers that it leaves out are not set back."""
        config = self.checkpoint.config
        known = config.router
        kinds = ("topk", "topk_all") if known.kind == "topk" and not config.norm_topk_prob else (known.kind,)
        if asked != RouterConfig() and asked.kind not in kinds:
            raise RecipeError(f"{where}: [router] kind is {asked.kind!r} and the model's is {kinds[-1]!r}")
        for key, value in asked.to_fields().items():
            if key != "kind" and value != getattr(known, key):
                raise RecipeError(f"{where}: [router] {key} is {value} and the model's is {getattr(known, key)}")
        return replace(known, capacity=asked.capacity, drop=asked.drop, jitter=asked.jitter)

    def fill(self, model: Transformer, tokenizer: Tokenizer) -> str:
        with TensorReader(self.checkpoint) as read:
            for name, target in model.tensors().items():
                read.fill(name, target)
        return f"starting from {self.folder}; the learning rate starts anew"


@dataclass(frozen=True)
class Upcycled:
    """[init] upcycle with one dense model."""

    checkpoint: Checkpoint
    plan: Upcycling

    @property
    def folder(self) -> Path:
        return self.checkpoint.path

    @property
    def granularity(self) -> int:
        return self.plan.granularity

    def config(self, recipe: Recipe, *, where: str) -> ModelConfig:
        return sparse_config(self.checkpoint.config, recipe.model | {"router": recipe.router}, self.plan, where=where)

    def fill(self, model: Transformer, tokenizer: Tokenizer) -> str:
        with TensorReader(self.checkpoint) as read:
            _fill(model, upcycle(_rounded(read, model.dtype), model.config, self.plan))
        made = {"copy": "copies", "split": "segments", "drop": "copies with new channels"}[self.plan.method]
        return (
            f"upcycled from {self.folder}: {model.config.num_local_experts} experts a layer, {made} of the dense block"
            "; the learning rate starts anew"
        )

    def certify(self, model: Transformer, ids: Sequence[int]) -> Certificate:
        """The filled model against the dense one, whose weights are rounded to the type that the run has.

        A scale that this type rounds is certified with experts of float64, and what rounding did is said beside it.
        """
        held, plan, dense = model.tensors(), self.plan, self.checkpoint.config

        with TensorReader(self.checkpoint) as read:
            rounded = _rounded(read, model.dtype)
            exact = upcycle(lambda name: rounded(name).double(), model.config, plan)

            def examine(experts: Tensors) -> Certificate:
                return certify(
                    rounded, dense, lambda name: (experts(name) if ".experts." in name else held[name]).cpu(),
                    model.config, ids, scale=plan.scale(model.config), granularity=plan.granularity,
                    is_exact=not plan.redrawn,
                )  # fmt: skip

            found = examine(held.__getitem__)
            if plan.redrawn or plan.is_exact(model.config, model.dtype):
                return found
            return replace(examine(exact), rounded=found.difference)


@dataclass(frozen=True)
class Merged:
    """[init] upcycle with several dense models, an expert of each."""

    checkpoints: tuple[Checkpoint, ...]
    init: Init
    granularity = 1

    @property
    def folder(self) -> Path:
        return self.checkpoints[0].path

    def config(self, recipe: Recipe, *, where: str) -> ModelConfig:
        names = [str(c.path) for c in self.checkpoints]
        fields = recipe.model | {"router": recipe.router}
        return merged_config([c.config for c in self.checkpoints], names, fields, where=where)

    def fill(self, model: Transformer, tokenizer: Tokenizer) -> str:
        with ExitStack() as stack:
            readers: list[Tensors] = [stack.enter_context(TensorReader(c)) for c in self.checkpoints]
            rows, sentence = self._routers(readers, model.config, tokenizer)
            _fill(model, merge([_rounded(read, model.dtype) for read in readers], self.init.shared, rows))
        return f"merged {len(readers)} models into as many experts a layer; {sentence}"

    def _routers(
        self, readers: list[Tensors], config: ModelConfig, tokenizer: Tokenizer
    ) -> tuple[list[torch.Tensor], str]:
        init, dense = self.init, self.checkpoints[0].config
        if init.routers == "random":
            layers = range(config.num_hidden_layers)
            plan = Upcycling(router_std=init.router_std, seed=init.seed)
            return [random_router(config, plan, layer) for layer in layers], "their routers are random"
        make = prompt_routers if init.routers == "prompts" else embedding_routers
        prompts = [encode_prompts(texts, tokenizer, dense) for texts in init.prompts]
        for texts, encoded in zip(init.prompts, prompts, strict=True):
            if not encoded:
                raise RecipeError(f"[init] prompts: there is no text in {', '.join(texts)}")
        found = make(readers, dense, init.shared, prompts)
        return [rows.repeat_interleave(config.router.slots, 0) for rows in found.rows_ED], _judgement(found)


Origin = Continued | Upcycled | Merged


def open_origin(recipe: Recipe) -> Origin | None:
    """What [init] names, opened and checked but not read; None for random weights."""
    init = recipe.init
    if init.from_:
        return Continued(open_checkpoint(_model_path(init.from_)))
    checkpoints = tuple(open_checkpoint(_model_path(name)) for name in init.upcycle)
    if len(checkpoints) > 1:
        return Merged(checkpoints, init)
    if checkpoints:
        plan = Upcycling(
            method=init.method, granularity=init.granularity, drop=init.drop, router_std=init.router_std, seed=init.seed
        )
        return Upcycled(checkpoints[0], plan)
    return None


def own_tokenizer(origin: Origin) -> Path:
    """The folder of the tokenizer of the model that the run starts from."""
    if origin.folder.is_file():
        raise RecipeError(f"{origin.folder} is a single file; name the folder of its tokenizer as [data] tokenizer")
    return origin.folder


def run_config(origin: Origin, recipe: Recipe, dtype: torch.dtype, *, where: str) -> ModelConfig:
    """The configuration of the run; `RecipeError` where its router could not learn or its rows are too long."""
    config = origin.config(recipe, where=where)
    require_context(recipe, config, where=where)
    require_router(recipe, config, where=where)
    return replace(config, torch_dtype=str(dtype).removeprefix("torch."))


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, model: Path, named: Path) -> None:
    """`RecipeError` where the tokenizer in the folder `named` is not that of the `model` which the run starts from.

    Some models have more rows than their tokenizer has pieces; then it must have as many as the model's own.
    """
    n, wanted = tokenizer.vocab_size, config.vocab_size
    if n < wanted and named != model and model.is_dir() and tokenizer_files(model):
        wanted = load_tokenizer(model).vocab_size
    if n > wanted or (named != model and n != wanted):
        raise RecipeError(
            f"the tokenizer of {named} has {n} pieces and {model} {wanted}; leave [data] tokenizer out, and the one "
            "of the model is taken"
        )


def encode_prompts(texts: Sequence[str], tokenizer: Tokenizer, config: ModelConfig) -> list[list[int]]:
    """The ids of texts with BOS, cut to a few hundred; what ends like a file of text is one, and its first texts."""
    found: list[str] = []
    for text in texts:
        if text.endswith(_FILES) and "\n" not in text:
            found += islice(read_files(files_below(expand_path(text))), _PROMPTS_OF_A_FILE)
        else:
            found.append(text)
    longest = min(_PROMPT_TOKENS, config.max_position_embeddings)
    encoded = [tokenizer.encode(text, bos=True)[:longest] for text in found]
    return [ids for ids in encoded if len(ids) > 1]


def _judgement(found: PromptRouters) -> str:
    least = min(share for shares in found.shares for share in shares)
    if not found.degenerate:
        return f"of its own prompts' tokens an expert is the first choice of {least:.0%} or more in every layer"
    layers = ", ".join(map(str, found.degenerate))
    return (
        f"the routers of layers {layers} are degenerate (an expert is the first choice of only {least:.0%} of its own "
        "prompts' tokens): give prompts that differ more, or train the routers"
    )


def _model_path(name: str) -> Path:
    return find_model(str(expand_path(name)))


def _rounded(read: Tensors, dtype: torch.dtype) -> Tensors:
    return lambda name: read(name).to(dtype)


def _fill(model: Transformer, tensors: Callable[[str], Any]) -> None:
    """All but what routers have beside their rows, which stays as it was initialised."""
    for name, target in model.tensors().items():
        if ".moe.router." not in name:
            target.copy_(tensors(name))
