"""Tokenizers to test with: the files that mistral-common ships, small ones made here, and published chat templates."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from coterie.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def v1(mistral_files: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(mistral_files["v1"])


@pytest.fixture(scope="session")
def v2(mistral_files: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(mistral_files["v2"])


@pytest.fixture(scope="session")
def v3(mistral_files: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(mistral_files["v3"])


@pytest.fixture(scope="session")
def tekken(mistral_files: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(mistral_files["tekken"])


@pytest.fixture(scope="session")
def llama_json(mistral_files: dict[str, Path]) -> dict[str, Any]:
    """Mixtral's v1 model as a `tokenizer.json`, converted as transformers does: merges by the pieces' scores."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(mistral_files["v1"]))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    merges = [
        (-model.get_score(i), vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
        for piece, i in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, piece) for i, piece in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[a, b] for *_, a, b in sorted(merges)],
        },
    }


@pytest.fixture(scope="session")
def chatml_json(llama_json: dict[str, Any]) -> dict[str, Any]:
    """The same with ChatML's marks added, one of them not called special, as in published fine-tunes."""
    marks = [added_token(32000, "<|im_end|>"), added_token(32001, "<|im_start|>", special=False)]
    return {**llama_json, "added_tokens": llama_json["added_tokens"] + marks}


def added_token(token_id: int, content: str, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


@pytest.fixture
def folder_with(tmp_path: Path) -> Any:
    """`folder_with({"tokenizer.json": {...}, "tokenizer.model": b"..."})`: a folder of these files."""

    def make(files: dict[str, Any]) -> Path:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (tmp_path / name).write_bytes(data)
        return tmp_path

    return make


# chat templates as published with models; nothing in src runs them
_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_ONLY = "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
_CHATML = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"  # noqa: E501
_DEFAULT = "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"

# name of the form, where the text was published, the text
PUBLISHED = [
    (
        "mistral-v1",
        "Mixtral-8x7B-Instruct-v0.1, first revisions; Mistral-7B-Instruct-v0.2",
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token}}" + _ONLY,
    ),
    (
        "mistral-v1",
        "Mistral-7B-Instruct-v0.1",
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token + ' ' }}" + _ONLY,
    ),
    (
        "mistral-v1",
        "Mixtral-8x7B-Instruct-v0.1 and Mistral-7B-Instruct-v0.2, later revisions",
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n"
        "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n"
        "{%- endif %}\n\n{{- bos_token }}\n{%- for message in loop_messages %}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
        "        {{- raise_exception('After the optional system message, conversation roles must alternate "
        "user/assistant/user/assistant/...') }}\n    {%- endif %}\n    {%- if message['role'] == 'user' %}\n"
        "        {%- if loop.first and system_message is defined %}\n"
        "            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n"
        "        {%- else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n"
        "        {%- endif %}\n    {%- elif message['role'] == 'assistant' %}\n"
        "        {{- ' ' + message['content'] + eos_token}}\n    {%- else %}\n"
        "        {{- raise_exception('Only user and assistant roles are supported, with the exception of an initial "
        "optional system message!') }}\n    {%- endif %}\n{%- endfor %}\n",
    ),
    (
        "llama-2",
        "Llama-2-7b-chat-hf and its sisters",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + _ALTERNATE + "{% if "
        "loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
        "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
        "{% endfor %}",
    ),
    ("chatml", "OpenHermes-2.5-Mistral-7B", _CHATML),
    ("chatml", "dolphin-2.x-mixtral-8x7b", _DEFAULT + _CHATML),
    ("chatml", "Nous-Hermes-2-Mixtral-8x7B-DPO", "{{bos_token}}" + _CHATML),
    ("chatml", "with a BOS, spaced", "{{ bos_token }}" + _CHATML),
    (
        "zephyr",
        "zephyr-7b-beta",
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    ),
]


@pytest.fixture(scope="session")
def published_templates() -> list[tuple[str, str, str]]:
    return PUBLISHED
