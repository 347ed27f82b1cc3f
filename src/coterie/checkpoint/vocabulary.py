"""The tokenizer and the chat form that come with a model, whether beside its weights or inside their file."""

from pathlib import Path
from typing import NamedTuple

from coterie.checkpoint.gguf import read_header
from coterie.errors import TokenizerError
from coterie.tokenizer import ChatForm, Tokenizer, detect_chat_form, load_tokenizer, tokenizer_files
from coterie.tokenizer.chat import chat_form_of
from coterie.tokenizer.gguf import gguf_tokenizer

__all__ = ["Vocabulary", "open_vocabulary", "require_vocabulary"]


class Vocabulary(NamedTuple):
    """Both None where a model comes without; the chat form alone where nothing proves one."""

    tokenizer: Tokenizer | None
    chat_form: ChatForm | None


def open_vocabulary(path: Path) -> Vocabulary:
    """What comes with the model in a folder or .gguf file."""
    if path.suffix == ".gguf" and path.is_file():
        metadata = read_header(path).metadata
        tokenizer, template = gguf_tokenizer(metadata, str(path)), metadata.get("tokenizer.chat_template")
        template = template if isinstance(template, str) else None
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
