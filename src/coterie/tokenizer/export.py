"""A SentencePiece BPE model as `tokenizer.json` and `tokenizer_config.json`, for transformers, vLLM and the rest.

BPE merges are ordered by the score of the piece they make, not by its id; among equal scores the lower id goes first.
"""

import json
from pathlib import Path
from typing import Any

import sentencepiece

__all__ = ["write_huggingface_tokenizer"]


def write_huggingface_tokenizer(model_file: Path, folder: Path) -> list[Path]:
    """Write both files into `folder` and return them. The model must be a byte-fallback BPE, as `training` makes."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    control = [
        model.id_to_piece(i) for i in range(model.get_piece_size()) if model.is_control(i) or model.is_unknown(i)
    ]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; LlamaTokenizer's spaces differ
        "bos_token": model.id_to_piece(model.bos_id()),
        "eos_token": model.id_to_piece(model.eos_id()),
        "unk_token": model.id_to_piece(model.unk_id()),
        "clean_up_tokenization_spaces": False,
    }
    written = []
    for name, document in (("tokenizer.json", _document(model, control)), ("tokenizer_config.json", config)):
        path = folder / name
        path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), "utf-8")
        written.append(path)
    return written


def _document(model: Any, control: list[str]) -> dict[str, Any]:
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    bos = model.id_to_piece(model.bos_id())
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocab[piece], piece) for piece in control],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.id_to_piece(model.unk_id()),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(model, vocab),
        },
    }


def _merges(model: Any, vocab: dict[str, int]) -> list[list[str]]:
    """Every way to make a piece of two others: [left, right], best score first."""
    found = [
        (-model.get_score(i), i, vocab[piece[:cut]], piece[:cut], piece[cut:])
        for piece, i in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return [[left, right] for _, _, _, left, right in sorted(found)]


def _added(token_id: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": True, **flags}
