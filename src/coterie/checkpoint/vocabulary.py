"""The tokenizer and the chat form that come with a model, whether beside its weights or inside their file."""

from pathlib import Path
from typing import Any, NamedTuple

from coterie.checkpoint.atomic import new_file
from coterie.checkpoint.gguf import read_header
from coterie.errors import TokenizerError
from coterie.tokenizer import ChatForm, Tokenizer, detect_chat_form, load_tokenizer, tokenizer_files
from coterie.tokenizer.chat import chat_form_of
from coterie.tokenizer.gguf import gguf_tokenizer, vocabulary_files
from coterie.tokenizer.settings import chat_template

__all__ = ["Vocabulary", "open_vocabulary", "require_vocabulary", "template_of", "write_vocabulary"]


class Vocabulary(NamedTuple):
    """Both None where a model comes without; the chat form alone where nothing proves one."""

    tokenizer: Tokenizer | None
    chat_form: ChatForm | None


def open_vocabulary(path: Path) -> Vocabulary:
    """What comes with the model in a folder or .gguf file."""
    if path.suffix == ".gguf" and path.is_file():
        metadata = read_header(path).metadata
        tokenizer, template = gguf_tokenizer(metadata, str(path)), _template(metadata)
        return Vocabulary(tokenizer, None if tokenizer is None else chat_form_of(template, tokenizer))
    if not path.is_dir() or not tokenizer_files(path):
        return Vocabulary(None, None)
    tokenizer = load_tokenizer(path)
    return Vocabulary(tokenizer, detect_chat_form(path, tokenizer))


def require_vocabulary(path: Path) -> tuple[Tokenizer, ChatForm | None]:
    """The same, or `TokenizerError` where there is no tokenizer (or no such file)."""
    if path.suffix != ".gguf" or not path.is_file():
        tokenizer = load_tokenizer(path)
        return tokenizer, detect_chat_form(path, tokenizer)
    found = open_vocabulary(path)
    if found.tokenizer is None:
        raise TokenizerError(f"{path} has no vocabulary; token ids work without one, text needs it")
    return found.tokenizer, found.chat_form


def template_of(path: Path) -> str | None:
    """The text of a model's chat template, or None."""
    if path.suffix == ".gguf" and path.is_file():
        return _template(read_header(path).metadata)
    return chat_template(path) if path.is_dir() else None


def write_vocabulary(path: Path, folder: Path) -> None:
    """The vocabulary and chat template of a .gguf file as the files that a model folder has."""
    for name, contents in vocabulary_files(read_header(path).metadata, str(path)).items():
        with new_file(folder / name) as f:
            f.write(contents)


def _template(metadata: dict[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None
