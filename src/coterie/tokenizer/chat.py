"""Which chat form a model speaks: by name, by its template's exact text, or by the control tokens of its tokenizer.

Templates are programs, and programs from a model folder are never run: a template is compared with the published
ones and otherwise left alone. A v1 SentencePiece model proves nothing, since base and instruct models share the file.
"""

from pathlib import Path

from coterie.errors import RequestError, nearest
from coterie.tokenizer.chat_forms import ChatForm, ChatML, Llama2, MistralV1, MistralV2, MistralV3, Zephyr
from coterie.tokenizer.chat_templates import form_of_template
from coterie.tokenizer.messages import Message
from coterie.tokenizer.mistral import mistral_version
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.settings import chat_template

__all__ = ["CHAT_FORMS", "ChatForm", "Message", "chat_form", "chat_form_of", "detect_chat_form"]

CHAT_FORMS: dict[str, ChatForm] = {
    form.name: form
    for form in (
        MistralV1("mistral-v1"),
        MistralV2("mistral-v2"),
        MistralV3("mistral-v3"),
        MistralV3("mistral-v3-tekken"),
        Llama2("llama-2"),
        ChatML("chatml"),
        Zephyr("zephyr"),
    )
}


def chat_form(name: str) -> ChatForm:
    """The form called `name`; `RequestError` lists the names where there is none."""
    if name not in CHAT_FORMS:
        raise RequestError(f"unknown chat form {name!r}{nearest(name, CHAT_FORMS)}; known: {', '.join(CHAT_FORMS)}")
    return CHAT_FORMS[name]


def detect_chat_form(folder: Path, tokenizer: Tokenizer) -> ChatForm | None:
    """The form of the model in `folder`, or None where nothing proves one (then the user has to name it)."""
    return chat_form_of(chat_template(folder) if folder.is_dir() else None, tokenizer)


def chat_form_of(template: str | None, tokenizer: Tokenizer) -> ChatForm | None:
    """The form of a model with this chat template and tokenizer, or None where nothing proves one."""
    name = None if template is None else form_of_template(template)
    name = name or _form_of_tokens(tokenizer, template)
    return None if name is None else CHAT_FORMS[name]


def _form_of_tokens(tokenizer: Tokenizer, template: str | None) -> str | None:
    """The form whose marks are control tokens, ChatML first as its marks are added to Mistral's own.

    An unknown template without the marks is proof against the form: the tokens came with the base model.
    """
    version = mistral_version(tokenizer)
    mistral = f"mistral-{version}-tekken" if tokenizer.kind == "tekken" else f"mistral-{version}"
    marks = {"chatml": ("<|im_start|>", "<|im_end|>"), "zephyr": ("<|user|>", "<|assistant|>"), mistral: ("[INST]",)}
    for name, needed in marks.items():
        known = all(tokenizer.control_id(mark) is not None for mark in needed)
        if known and name in CHAT_FORMS and (template is None or needed[0] in template):
            return name
    return None
