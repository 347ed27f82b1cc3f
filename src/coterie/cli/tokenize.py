"""`coterie tokenize`: the pieces and ids of a text, and why they are what they are.

Shows what `generate` would feed the model, so a BOS comes first. Needs the tokenizer's files only: no weights, no
torch.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coterie.cli.model_argument import resolve_model
from coterie.cli.output import note, print_json, print_table, printable
from coterie.cli.prompt_text import read_text
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.tokenizer import ChatForm, Tokenizer
    from coterie.tokenizer.explain import ExplainedToken

__all__ = ["command"]


@click.command("tokenize")
@click.argument("text", required=False)
@click.option(
    "-m", "--model", default="demo", metavar="MODEL", help="A folder, a .gguf file, org/name in the cache; else demo."
)
@click.option("--no-bos", is_flag=True, help="Leave out the token that begins a text.")
@click.option(
    "--chat", is_flag=True, help="TEXT is a user's turn, or a JSON list of turns; show it as the model gets it."
)
@click.option(
    "--chat-form", metavar="NAME", help="The chat form, where the model's files do not prove one; means --chat."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document: ids, pieces, texts, reasons.")
def command(text: str | None, model: str, no_bos: bool, chat: bool, chat_form: str | None, as_json: bool) -> None:
    """Show the pieces and ids of TEXT (or stdin), and why.

    \b
    coterie tokenize "Ça coûte 1234 €"
    coterie tokenize -m mistralai/Mixtral-8x7B-Instruct-v0.1 --chat "Hello"
    """
    from coterie.checkpoint.vocabulary import require_vocabulary
    from coterie.tokenizer.explain import explain

    path = resolve_model(model)
    tokenizer, detected = require_vocabulary(path)
    text = read_text(text)
    form = _chat_form(path, detected, chat_form) if chat or chat_form else None
    if no_bos and form is not None:
        raise click.UsageError("--no-bos is for a text, and a conversation begins as its form says: leave one out")
    if form is None:
        tokens = explain(tokenizer, tokenizer.encode(text, bos=not no_bos), text)
    else:
        tokens = explain(tokenizer, form.encode(_messages(text), tokenizer))
    if as_json:
        print_json(_document(text, tokens, tokenizer, form))
    else:
        _show(text, tokens, tokenizer, form)


def _chat_form(path: Path, detected: "ChatForm | None", name: str | None) -> "ChatForm":
    from coterie.tokenizer import CHAT_FORMS, chat_form

    form = detected if name is None else chat_form(name)
    if form is None:
        raise RequestError(
            f"{path} does not show which chat form it speaks; give --chat-form, one of {', '.join(CHAT_FORMS)}"
        )
    return form


def _messages(text: str) -> list[dict[str, Any]]:
    """The conversation in `text`: JSON where it is a list of objects, else one turn of the user's."""
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        turns = None
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
        return turns
    return [{"role": "user", "content": text}]


def _document(
    text: str, tokens: "list[ExplainedToken]", tokenizer: "Tokenizer", form: "ChatForm | None"
) -> dict[str, Any]:
    return {
        "text": text,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        "chat_form": None if form is None else form.name,
        "ids": [token.id for token in tokens],
        "tokens": [asdict(token) for token in tokens],
    }


def _show(text: str, tokens: "list[ExplainedToken]", tokenizer: "Tokenizer", form: "ChatForm | None") -> None:
    """A table on stdout, the sums on stderr."""
    rows = [("id", "piece", "text", "why")]
    rows += [
        (str(t.id), printable(t.piece), repr(t.text) if t.text else "", printable("; ".join(t.why))) for t in tokens
    ]
    print_table(rows, indent=0)
    n_bytes = len(text.encode())
    note(
        f"{len(tokens)} tokens for {len(text)} characters ({n_bytes} bytes); "
        f"{tokenizer.kind} with {tokenizer.vocab_size} tokens"
        + (f"; chat form {form.name}" if form is not None else "")
    )
