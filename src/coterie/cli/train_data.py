"""What `coterie train` prepares before there is a model: the vocabulary, and the text as tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cli.output import note, print_json, print_table, progress

if TYPE_CHECKING:
    from coterie.tokenizer.protocol import Tokenizer
    from coterie.train.recipe import Recipe
    from coterie.train.tokens import TokenFile

__all__ = ["prepare_tokenizer", "prepare_tokens", "require_text", "show_tokenizer"]

_VOCABULARY_TEXT = 1 << 28  # bytes of text that a vocabulary is trained on; from more it learns nothing new


def require_text(plan: "Recipe") -> None:
    """`DataError` where a file or folder of the recipe is not there: before anything is removed, and hours of work."""
    from coterie.train.recipe import expand_path
    from coterie.train.texts import files_below

    for name in (*plan.data.files, *plan.data.valid):
        files_below(expand_path(name))


def prepare_tokenizer(plan: "Recipe", folder: Path) -> Path:
    """The folder of the tokenizer that the recipe names, trained first where it asks for that."""
    from coterie.errors import RecipeError
    from coterie.train.recipe import expand_path

    wanted = plan.data.tokenizer
    if isinstance(wanted, str):
        named = expand_path(wanted)
        if named.is_file():  # the finished model takes the folder's files along
            raise RecipeError(f"[data] tokenizer is the file {named}, expected the folder that it is in")
        return named
    target = folder / "tokenizer"
    if (target / "tokenizer.model").exists():
        _check_size(target, wanted["vocab_size"])
    else:
        note(f"training a vocabulary of {wanted['vocab_size']} pieces")
        _train_tokenizer(plan, wanted["vocab_size"], target)
    return target


def prepare_tokens(
    names: Sequence[str], tokenizer: "Tokenizer", tokenizer_dir: Path, folder: Path
) -> "list[TokenFile]":
    """The entries of a recipe as tokens, from `folder`/tokens where they are there already."""
    from coterie.train.recipe import expand_path
    from coterie.train.tokens import tokenize_path

    files = []
    for name in names:
        path = expand_path(name)
        try:
            with progress(f"tokenising {path.name}") as report:
                files.append(tokenize_path(path, tokenizer, folder / "tokens", report, source=tokenizer_dir))
        except (KeyboardInterrupt, SystemExit):
            note(f"stopped while tokenising {path.name}; the same command goes on behind the last whole shard")
            raise
        note(f"{files[-1].name}: {len(files[-1].ids):,} tokens, {files[-1].n_bytes:,} bytes")
    return files


def show_tokenizer(plan: "Recipe", folder: Path, as_json: bool) -> None:
    """Train the vocabulary alone; print where it is, its size, and how many bytes of each valid file a token is."""
    from coterie.tokenizer.load import load_tokenizer

    target = prepare_tokenizer(plan, folder)
    tokenizer = load_tokenizer(target)
    files = prepare_tokens(plan.data.valid, tokenizer, target, folder)
    reached = {file.name: file.n_bytes / len(file.ids) for file in files}
    if as_json:
        print_json({"tokenizer": str(target), "vocab_size": tokenizer.vocab_size, "bytes_per_token": reached})
        return
    note(f"{target} has {tokenizer.vocab_size:,} pieces; the recipe uses it when it is trained")
    print_table([(name, f"{n:.2f}", "bytes a token") for name, n in reached.items()], indent=0)
    if not reached:
        note("the recipe names no [data] valid files to measure it on")


def _train_tokenizer(plan: "Recipe", vocab_size: int, target: Path) -> None:
    """All of the folder at once or, where anything fails, nothing."""
    from coterie.checkpoint.atomic import new_folder
    from coterie.tokenizer.export import write_huggingface_tokenizer
    from coterie.tokenizer.training import train_sentencepiece
    from coterie.train.recipe import expand_path
    from coterie.train.texts import read_mixture

    texts = read_mixture([expand_path(name) for name in plan.data.files], plan.data.weights, _VOCABULARY_TEXT)
    with new_folder(target) as partial:
        train_sentencepiece(texts, vocab_size, partial / "tokenizer.model")
        write_huggingface_tokenizer(partial / "tokenizer.model", partial)


def _check_size(folder: Path, wanted: int) -> None:
    from coterie.errors import RecipeError
    from coterie.tokenizer.load import load_tokenizer

    found = load_tokenizer(folder).vocab_size
    if found != wanted:
        raise RecipeError(
            f"{folder} has {found} pieces from an earlier run and the recipe asks for {wanted}; choose another "
            "[run] out, or start again with --fresh"
        )
