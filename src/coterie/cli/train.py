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
@click.option("--verify-resume", is_flag=True, help="Prove in a few steps that resuming is exact here; trains nothing.")
@click.option("--tokenizer", "only_tokenizer", is_flag=True, help="Train the vocabulary alone and measure it.")
@click.option("--compare", metavar="A,B", help="Train once with each of these routers, and write a table and a plot.")
@click.option("--ranks", type=click.IntRange(min=1), help="Train in N processes of this machine at once.", metavar="N")
@click.option("--json", "as_json", is_flag=True, help="The final record as one JSON document; null before the end.")
@click.pass_context
def command(
    context: click.Context,
    recipe: Path,
    out: Path | None,
    steps: int | None,
    fresh: bool,
    verify_resume: bool,
    only_tokenizer: bool,
    compare: str | None,
    ranks: int | None,
    as_json: bool,
) -> None:
    """Train a model as RECIPE (a TOML file) says.

    The run's folder gets log.jsonl, checkpoints to resume from, and at the end `model/`, which every other verb takes.
    The same command resumes a run that was stopped.
    """
    from coterie.cli.train_compare import compare_routers
    from coterie.cli.train_data import require_text, show_tokenizer
    from coterie.cli.train_ranks import hold_run_on_first, meet_ranks, start_ranks
    from coterie.cli.train_run import forget, run_recipe
    from coterie.cli.train_verify import verify_resume as prove
    from coterie.train.compare import parse_kinds
    from coterie.train.launch import is_rank
    from coterie.train.recipe import expand_path, read_recipe

    plan = read_recipe(recipe)
    folder = out or expand_path(plan.run.out)
    require_text(plan)
    kinds = None if compare is None else parse_kinds(compare)
    if verify_resume:
        if fresh or only_tokenizer or kinds is not None or as_json:
            raise click.UsageError("--verify-resume goes with --out, --steps and --ranks only; leave the others out")
        options = ["--ranks", str(ranks)] if ranks else []
        prove(recipe, folder, last=plan.train.steps, steps=steps, options=options)
        return
    if only_tokenizer and (steps or kinds is not None):
        raise click.UsageError("--tokenizer trains no model; leave --steps and --compare out")
    if ranks and ranks > 1 and not is_rank():
        start_ranks(context, plan, ranks, is_debug=context.obj.debug)
    alone = "--tokenizer" if only_tokenizer else "--compare" if kinds is not None else None
    with meet_ranks(plan, alone=alone) as mesh, hold_run_on_first(folder, mesh):
        if fresh and mesh.is_first:
            forget(folder)
        if only_tokenizer:
            show_tokenizer(plan, folder, as_json)
            return
        if kinds is not None:
            compare_routers(plan, folder, kinds, steps=steps, is_fresh=fresh, as_json=as_json)
            return
        final = run_recipe(plan, folder, steps, mesh=mesh)
    if as_json and mesh.is_first:
        print_json(final)
    elif final is not None:
        note(f"{folder / 'model'} is ready: coterie generate -m {folder / 'model'} TEXT")
