"""`coterie inspect MODEL`: what a knowledgeable person reads off a checkpoint, from configuration and headers alone.

A bare config.json or params.json is enough for everything but the list of tensors. No torch, no weights read.
"""

import math
from pathlib import Path
from typing import Any

import click

from coterie import sizes
from coterie.checkpoint.folder import not_a_model, open_checkpoint, read_model_config
from coterie.checkpoint.hub import DEMO
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.safetensors import Entry, read_entries
from coterie.cli.inspect_against import print_likeness
from coterie.cli.inspect_text import print_description
from coterie.cli.model_argument import model_argument, resolve_model
from coterie.cli.output import print_json, print_markdown, print_table, printable
from coterie.config import ModelConfig
from coterie.device import available_memory, gpus, total_memory
from coterie.errors import CheckpointError

__all__ = ["command", "describe", "model_card"]

_BITS = (16, 8, 4)
_CARD_MARK = "library_name: coterie"  # in the front matter of a card that coterie wrote


_EXAMPLES = """\b
Examples:
  coterie inspect demo
  coterie inspect mixtral/config.json --json
  coterie inspect mistralai/Mixtral-8x7B-v0.1 --tensors
  coterie inspect mistralai/Mixtral-8x7B-v0.1 --against mistralai/Mistral-7B-v0.1"""


@click.command(epilog=_EXAMPLES)
@model_argument
@click.option("--tensors", is_flag=True, help="List the tensors of the weight files: name, shape, dtype.")
@click.option("--against", metavar="DENSE", help="How alike each expert and the blocks of this dense model are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(model: str, tensors: bool, against: str | None, as_json: bool) -> None:
    """Read off a checkpoint what it is, and what of it fits this machine.

    MODEL is a folder, a .gguf file, a bare config.json or params.json, org/name in the Hugging Face cache, or demo.
    """
    path = resolve_model(model)
    if against is not None:
        if tensors:
            raise click.UsageError("--against compares experts and --tensors lists tensors: leave one of them out")
        print_likeness(path, resolve_model(against), as_json)
        return
    if path.suffix == ".safetensors" and path.is_file() and tensors:
        _print_tensors(read_entries(path), as_json, {"model": str(path)})
        return
    if path.is_file() and path.suffix not in (".json", ".gguf"):
        raise not_a_model(path)
    is_whole = path.suffix == ".gguf" if path.is_file() else tensors or _has_weights(path)
    checkpoint = open_checkpoint(path) if is_whole else None
    config = checkpoint.config if checkpoint else read_model_config(path)
    entries = list(checkpoint.listed) if checkpoint else []
    document = describe(config) | {"model": str(path), "file_bytes": sum(e.nbytes for e in entries) or None}
    document["stored"] = _stored(checkpoint) if checkpoint else None
    if tensors:
        if checkpoint is None:
            raise CheckpointError(f"{path} is a configuration and has no tensors to list; name the model's folder")
        _print_tensors(entries, as_json, document)
    elif as_json:
        print_json(document | {"card": model_card(path)})
    else:
        print_description(document, config)
        if card := model_card(path):
            print()
            print_markdown(card)


def describe(config: ModelConfig) -> dict[str, Any]:
    """Everything `inspect` says about a configuration, as JSON values."""
    total, active = sizes.parameters(config), sizes.active_parameters(config)
    parts = ("embedding", "attention", "router", "feedforward", "norms", "head")
    context = config.max_position_embeddings
    devices = [("cpu", available_memory(), total_memory())]
    devices += [(f"cuda:{i} {name}", free, all_) for i, (name, all_, free) in enumerate(gpus())]
    return {
        "config": config.to_fields(),
        "parameters": {
            "total": total.total,
            "active": active.total,
            "parts": {p: {"total": getattr(total, p), "active": getattr(active, p)} for p in parts},
        },
        "expansion": sizes.expansion(config),
        "query_heads_per_key_head": sizes.query_heads_per_key_head(config),
        "experts": _experts(config),
        "bytes": {str(bits): sizes.weight_bytes(config, bits) for bits in _BITS},
        "bytes_with_scales": {
            str(bits): sizes.weight_bytes(config, bits, scale_group=sizes.SCALE_GROUP) for bits in _BITS if bits < 16
        },
        "cache": {
            "bytes_per_token": sizes.cache_bytes(config, 1),
            "bytes_per_1k_tokens": sizes.cache_bytes(config, 1000, windowed=False),
            "bytes_per_1k_tokens_with_window": sizes.cache_bytes(config, 1000),
            "bytes_at_context": sizes.cache_bytes(config, context, windowed=False),
            "bytes_at_context_with_window": sizes.cache_bytes(config, context),
            "window": config.sliding_window,
            "context": context,
        },
        "operations_per_token": {
            "first": sizes.operations_per_token(config),
            "at_context": sizes.operations_per_token(config, context),
        },
        "fits": [
            {
                "device": name,
                "free_bytes": free,
                "total_bytes": all_,
                "weights": [vars(sizes.fit(config, free, b)) for b in _BITS],
            }
            for name, free, all_ in devices
        ],
    }


def model_card(path: Path) -> str | None:
    """The README.md of a folder that coterie made (the one that ships, say), less its front matter."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front, body = "", text
    if text.startswith("---\n") and "\n---\n" in text:
        front, body = text[4:].split("\n---\n", 1)
    is_ours = _CARD_MARK in front.splitlines() or path.resolve() == DEMO
    return body.strip() if is_ours else None


def _experts(config: ModelConfig) -> dict[str, Any] | None:
    if config.num_local_experts is None:
        return None
    choices, layers = sizes.paths_per_layer(config), config.num_hidden_layers
    return {
        "router": config.router.kind if config.norm_topk_prob or not config.router.is_plain else "topk_all",
        "per_layer": config.num_local_experts,
        "per_token": config.num_experts_per_tok,
        "choices_per_layer": choices,
        "layers": layers,
        "paths": f"{choices}^{layers}",
        "paths_log10": layers * math.log10(choices),
    }


def _stored(checkpoint: Checkpoint) -> dict[str, dict[str, dict[str, float]]]:
    """Part -> type in the files -> how many numbers, bytes, bits for each number (scales included)."""
    return {
        part: {code: {"numbers": n, "bytes": size, "bits": 8 * size / n} for code, (n, size) in types.items()}
        for part, types in checkpoint.stored().items()
    }


def _has_weights(path: Path) -> bool:
    return any(path.glob("*.safetensors*"))


def _print_tensors(entries: list[Entry], as_json: bool, document: dict[str, Any]) -> None:
    if as_json:
        rows = [
            {"name": e.name, "dtype": e.dtype, "shape": list(e.shape), "file": e.file.name, "bytes": e.nbytes}
            for e in entries
        ]
        print_json(document | {"tensors": rows})
        return
    print_table([(printable(e.name), str(list(e.shape)), e.dtype) for e in entries], indent=0)
