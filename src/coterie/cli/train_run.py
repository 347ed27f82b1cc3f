"""What `coterie train` does with a recipe: tokenizer, tokens, trainer, scores, and the model's folder at the end."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note, progress
from coterie.cli.train_data import prepare_tokenizer, prepare_tokens
from coterie.cli.train_origin import Lineage
from coterie.cli.train_view import TrainView

if TYPE_CHECKING:
    import torch

    from coterie.config import ModelConfig
    from coterie.model import Transformer
    from coterie.tokenizer.protocol import Tokenizer
    from coterie.train.loop import Trainer
    from coterie.train.mesh import Mesh
    from coterie.train.origin import Origin
    from coterie.train.recipe import Recipe
    from coterie.train.tokens import TokenFile

__all__ = ["forget", "run_recipe"]


def run_recipe(
    plan: "Recipe", folder: Path, steps: int | None = None, texts: Path | None = None, mesh: "Mesh | None" = None
) -> dict[str, Any] | None:
    """Train to the end or to step `steps`, going on where an earlier call stopped; the scores of the valid files.

    None where the run stopped before its end, and on all ranks but the first. The vocabulary and the tokens are kept in
    `texts`, else in `folder`.
    """
    from coterie.checkpoint.atomic import disk_errors, new_file
    from coterie.train.memory import keep_freed_memory
    from coterie.train.sinks import require_tensorboard

    if plan.run.tensorboard:
        require_tensorboard()
    folder.mkdir(parents=True, exist_ok=True)
    _require_place(folder / "model")
    if mesh is None or mesh.is_first:
        for left in folder.glob("model.partial-*"):  # by a process that was killed
            shutil.rmtree(left)
    view = TrainView(plan.train.steps)
    trainer, valid, tokenizer_dir, lineage = assemble(plan, folder, view, texts, mesh)
    if trainer.resume():
        for sentence in trainer.checkpoints.passed_over:
            note(f"a damaged checkpoint is passed over: {sentence}")
        note(f"resuming at step {trainer.step} of {plan.train.steps}")
    keep_freed_memory()
    with _how_to_go_on(trainer, plan):
        with view, _tensorboard(plan, folder, trainer):
            trainer.run(until=steps)
        if trainer.step < plan.train.steps:
            note(f"stopped at step {trainer.step} of {plan.train.steps}; without --steps, or with more, it goes on")
            return None
        trainer.model.eval()
        final = {f.name: score(trainer.model, f, plan) for f in valid}
    _require_finite(final, plan, folder)
    model = trainer.whole_model()
    if model is None:
        return None
    lineage.finish(model, trainer.step)
    save_model(model, tokenizer_dir, folder / "model")
    with disk_errors(folder / "scores.json"), new_file(folder / "scores.json") as file:
        file.write((json.dumps(final, indent=1) + "\n").encode())
    return final


def _require_finite(final: dict[str, Any], plan: "Recipe", folder: Path) -> None:
    """`CoterieError` where the last update spoilt the model: no step came after it that would have shown it."""
    from coterie.errors import CoterieError

    for name, found in final.items():
        if not math.isfinite(found["bits_per_byte"]):
            raise CoterieError(
                f"after the last step the model's loss on {name} is {found['bits_per_byte']}, so no model is written; "
                f"give the recipe a smaller [train] lr (now {plan.train.lr:g}) and remove the newest folder of "
                f"{folder / 'checkpoints'} to go on from the one before"
            )


def _require_place(model: Path) -> None:
    """`RecipeError` where the result would replace something that is no model."""
    from coterie.errors import RecipeError

    is_empty = model.is_dir() and not any(model.iterdir())
    if model.exists() and not is_empty and not (model / "config.json").exists():
        raise RecipeError(
            f"{model} is there and holds no model, and the run's result would replace it; choose another [run] out"
        )


@contextmanager
def _how_to_go_on(trainer: "Trainer", plan: "Recipe") -> Iterator[None]:
    """After Ctrl-C or `kill`: what is saved, and what to do."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        where = f"step {trainer.step} of {plan.train.steps}"
        if trainer.saved == trainer.step:
            note(f"stopped and saved at {where}; the same command goes on from there")
        else:
            note(f"stopped at {where} and not saved; the same command goes on from the last checkpoint")
        raise


@contextmanager
def _tensorboard(plan: "Recipe", folder: Path, trainer: "Trainer") -> Iterator[None]:
    """Where the recipe asks for it, what the trainer reports goes to TensorBoard too."""
    from coterie.train.sinks import TensorBoard

    if not plan.run.tensorboard or not trainer.mesh.is_first:
        yield
        return
    show = trainer.report
    with TensorBoard.open(folder / "tensorboard", trainer.step) as board:

        def report(record: dict[str, Any]) -> None:
            show(record)
            board.write(record)

        trainer.report = report
        yield


def forget(folder: Path) -> None:
    """Remove what a run left, and nothing else: `--out` may name a folder that holds more."""
    names = ["tokenizer"] if (folder / "tokenizer" / "tokenizer.model").exists() else []
    if any((folder / name).exists() for name in ("log.jsonl", "checkpoints", "state.safetensors", "tokens")):
        for name in ("log.jsonl", "state.safetensors", "scores.json", "upcycling.json"):
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob("bad-batch-*.json"):
            path.unlink()
        names = ["checkpoints", "tokenizer", "tokens", "model", "tensorboard"]
    for name in names:
        if (folder / name).is_symlink():  # to what runs share
            (folder / name).unlink()
        elif (folder / name).exists():
            shutil.rmtree(folder / name)


def assemble(
    plan: "Recipe", folder: Path, view: TrainView, texts: Path | None = None, mesh: "Mesh | None" = None
) -> "tuple[Trainer, list[TokenFile], Path, Lineage]":
    """The trainer with its batches, the valid files, the tokenizer's folder, and what the run starts from."""
    from coterie.device import choose_device, choose_dtype
    from coterie.tokenizer.load import load_tokenizer
    from coterie.train.batches import Batches
    from coterie.train.footprint import require_memory
    from coterie.train.loop import Trainer
    from coterie.train.mesh import Mesh
    from coterie.train.origin import open_origin, own_tokenizer

    origin = open_origin(plan)
    takes_own, texts = plan.data.tokenizer == "", texts or folder
    mesh = mesh or Mesh.single(choose_device("auto"))
    device = mesh.device
    dtype = choose_dtype(plan.train.dtype, "bfloat16", device)
    with mesh.first_rank_first():
        tokenizer_dir = own_tokenizer(origin) if origin and takes_own else prepare_tokenizer(plan, texts)
        tokenizer = load_tokenizer(tokenizer_dir)
        config = model_config(plan, origin, tokenizer, tokenizer_dir, dtype)
        require_memory(config, plan.train, dtype, device, mesh.n_ranks)
        train, valid = (
            prepare_tokens(names, tokenizer, tokenizer_dir, texts) for names in (plan.data.files, plan.data.valid)
        )
    t, sequence_plan = plan.train, plan.sequence_plan()
    tokens = t.batch * sequence_plan[0][1]
    bos = config.bos_token_id or 0
    masked = plan.data.documents == "masked"
    batches = Batches(train, plan.data.weights, sequence_plan, t.steps, tokens, bos, t.seed, is_masked=masked)
    _warn_reuse(train, t.steps * tokens)

    lineage = Lineage(origin, folder, is_first=mesh is None or mesh.is_first)

    def evaluate(model: "Transformer") -> dict[str, float]:
        view.clear()
        return {f.name: score(model, f, plan, max_windows=8)["bits_per_byte"] for f in valid}

    trainer = Trainer(
        plan, config, batches, dtype, device, folder, evaluate, view.show,
        fill=lambda model: lineage.fill(model, tokenizer, (valid or train)[0]), measure=lineage.measure, mesh=mesh,
    )  # fmt: skip
    return trainer, valid, tokenizer_dir, lineage


def model_config(
    plan: "Recipe", origin: "Origin | None", tokenizer: "Tokenizer", tokenizer_dir: Path, dtype: "torch.dtype"
) -> "ModelConfig":
    """What [model] and [router] say, on top of the model that the run starts from or else of the tokenizer."""
    from coterie.train.origin import check_vocabulary, run_config
    from coterie.train.recipe import fresh_config

    if origin is not None:
        config = run_config(origin, plan, dtype, where="the recipe")
        check_vocabulary(config, tokenizer, origin.folder, tokenizer_dir)
        return config
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return fresh_config(plan, dtype, tokenizer.vocab_size, where="the recipe", **ids)


def _warn_reuse(files: "list[TokenFile]", wanted: int) -> None:
    there = sum(len(f.ids) for f in files)
    note(f"{wanted:,} tokens to train on, {there:,} in the files: {wanted / there:.2f} epochs")


def longest_window(plan: "Recipe") -> int:
    """The longest sequence the model was trained on: beyond it a score would measure something else."""
    return max(length for _, length in plan.sequence_plan())


def score(model: "Transformer", file: "TokenFile", plan: "Recipe", max_windows: int | None = None) -> dict[str, Any]:
    """In passes of as many tokens as keep a core busy, and no more than a micro-batch of training: that fits."""
    from coterie.eval.perplexity import score_tokens

    window = longest_window(plan)
    batch = max(1, min(4096 // window, *plan.rows_of_micro_batches()))
    with progress(f"scoring {file.name}", unit="windows") as report:
        score = score_tokens(model, file.ids, window=window, batch=batch, max_windows=max_windows, progress=report)
    bytes_per_token = file.n_bytes / len(file.ids)
    return {"bits_per_byte": score.bits_per_byte(bytes_per_token), "tokens": score.n_tokens, "shares": score.shares()}


def save_model(model: "Transformer", tokenizer_dir: Path, target: Path) -> None:
    from coterie.checkpoint.huggingface import save_huggingface
    from coterie.tokenizer.load import tokenizer_files

    files = tokenizer_files(tokenizer_dir)
    dtype = model.config.torch_dtype
    save_huggingface(target, model.config, model.tensors(), dtype=dtype, extra_files=files, replace=True)
