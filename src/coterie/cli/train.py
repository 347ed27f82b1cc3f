"""`coterie train RECIPE`: tokenizer, tokens, training, and a Hugging Face folder at the end; run again to resume."""

from pathlib import Path

import click

from coterie.cli.output import note, print_json

__all__ = ["command"]


@click.command(name="train", epilog="Example: coterie train recipes/demo.toml")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run, instead of the recipe's [run] out.")
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps in all, to be resumed later.")
@click.option("--fresh", is_flag=True, help="Start again, removing the state of an earlier run.")
@click.option("--tokenizer", "only_tokenizer", is_flag=True, help="Train the vocabulary alone and measure it.")
@click.option("--json", "as_json", is_flag=True, help="The final record as one JSON document on stdout.")
def command(
    recipe: Path, out: Path | None, steps: int | None, fresh: bool, only_tokenizer: bool, as_json: bool
) -> None:
    """Train a model as RECIPE (a TOML file) says.

    The run's folder gets log.jsonl, the state to resume from, and at the end `model/`, which every other verb takes.
    The same command resumes a run that was stopped.
    """
    from coterie.cli.train_data import show_tokenizer
    from coterie.cli.train_run import forget, run_recipe
    from coterie.train.recipe import expand_path, read_recipe

    plan = read_recipe(recipe)
    folder = out or expand_path(plan.run.out)
    if fresh:
        forget(folder)
    if only_tokenizer:
        show_tokenizer(plan, folder, as_json)
        return
    final = run_recipe(plan, folder, steps)
    if final is not None and as_json:
        print_json(final)
    elif final is not None:
        note(f"{folder / 'model'} is ready: coterie generate -m {folder / 'model'} TEXT")
