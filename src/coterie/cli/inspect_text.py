"""The description of `coterie inspect` as text: one block of aligned columns after another."""

from typing import Any

from coterie.cli.output import human_bytes, human_count, human_operations, print_table, printable
from coterie.config import ModelConfig
from coterie.sizes import SCALE_GROUP

__all__ = ["print_description"]


def print_description(document: dict[str, Any], config: ModelConfig) -> None:
    """Print what `coterie.cli.inspect.describe` found, for people."""
    kind = "dense" if config.num_local_experts is None else "sparse"
    print(printable(f"{document['model']}: a {kind} model, {human_count(document['parameters']['total'])} parameters"))
    _print_parameters(document)
    print("\nShape")
    print_table(_shape_rows(document, config))
    print("\nBytes of the weights")
    scaled = document["bytes_with_scales"]
    rows = [
        (f"at {bits} bits", human_bytes(n), _scaled_note(scaled.get(bits))) for bits, n in document["bytes"].items()
    ]
    print_table(rows + ([("in the files", human_bytes(document["file_bytes"]))] if document["file_bytes"] else []))
    if document["stored"]:
        print("\nTypes in the files")
        print_table(_stored_rows(document))
    print("\nCache of keys and values, 16 bits, one sequence")
    print_table(_cache_rows(document["cache"]))
    print("\nOperations per token")
    operations, context = document["operations_per_token"], document["cache"]["context"]
    print_table([
        ("the first", human_operations(operations["first"])),
        (f"after {context:,} tokens", human_operations(operations["at_context"])),
    ])  # fmt: skip
    for device in document["fits"]:
        free, all_ = human_bytes(device["free_bytes"]), human_bytes(device["total_bytes"])
        print(printable(f"\nFits {device['device']}, {free} free of {all_}?", keep="\n"))
        print_table([(f"at {f['bits']} bits", _fit_sentence(f, config)) for f in device["weights"]])


def _part_name(part: str, document: dict[str, Any]) -> str:
    if part != "feedforward":
        return part
    return "feed-forward" if document["experts"] is None else "experts"


def _stored_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (_part_name(part, document), code, f"{found['bits']:.4g} bits", human_bytes(found["bytes"]))
        for part, types in document["stored"].items()
        for code, found in types.items()
    ]


def _print_parameters(document: dict[str, Any]) -> None:
    parameters, is_sparse = document["parameters"], document["experts"] is not None
    print()
    print_table([
        ("Parameters", "total".rjust(16), "used by a token"),
        *(
            (_part_name(p, document), f"{n['total']:,}", f"{n['active']:,}")
            for p, n in parameters["parts"].items() if p != "router" or is_sparse
        ),
        ("all", f"{parameters['total']:,}", f"{parameters['active']:,}"),
    ], indent=0)  # fmt: skip


def _shape_rows(document: dict[str, Any], config: ModelConfig) -> list[tuple[str, ...]]:
    D, F = config.hidden_size, config.intermediate_size
    experts, each = document["experts"], " of each expert" if document["experts"] else ""
    tied = ", head tied to the embedding" if config.tie_word_embeddings else ""
    rows: list[tuple[str, ...]] = [
        ("layers, width", f"{config.num_hidden_layers} of {config.hidden_size:,}"),
        ("vocabulary", f"{config.vocab_size:,} pieces{tied}"),
        ("feed-forward expansion", f"{document['expansion']:g}{each} ({F} / {D})"),
        ("query heads per key head", f"{document['query_heads_per_key_head']} "
            f"({config.num_attention_heads} / {config.num_key_value_heads}, each {config.head_dim} wide)"),
    ]  # fmt: skip
    if experts:
        exponent = experts["paths_log10"]
        n_paths = f"about {10 ** (exponent % 1):.1f}e{int(exponent)}" if exponent > 9 else f"{10**exponent:,.0f}"
        paths = f"{experts['paths']}, {n_paths}"
        rows += [
            (
                "experts",
                f"{experts['per_token']} of {experts['per_layer']} per token, "
                f"{experts['choices_per_layer']} choices a layer",
            ),
            ("router", _router_name(experts["router"], config)),
            ("paths through the layers", paths),
        ]
    return rows


def _router_name(kind: str, config: ModelConfig) -> str:
    note = "" if config.router.can_decode else ", which looks at later tokens: no text can be generated"
    return f"{kind}{note}"


def _scaled_note(with_scales: int | None) -> str:
    if with_scales is None:
        return ""
    return f"({human_bytes(with_scales)} with a 16-bit scale for every {SCALE_GROUP} weights)"


def _cache_rows(cache: dict[str, Any]) -> list[tuple[str, ...]]:
    window, context = cache["window"], cache["context"]
    rows: list[tuple[str, ...]] = [
        ("per token", human_bytes(cache["bytes_per_token"])),
        ("per 1k tokens", human_bytes(cache["bytes_per_1k_tokens"])),
        (f"at {context:,} tokens", human_bytes(cache["bytes_at_context"])),
    ]
    if window is None:
        return [*rows, ("window", "none: every token sees all before it")]
    return [
        *rows,
        ("per 1k tokens, with the window", human_bytes(cache["bytes_per_1k_tokens_with_window"])),
        (
            f"at {context:,} tokens, with the window",
            f"{human_bytes(cache['bytes_at_context_with_window'])} (window {window:,})",
        ),
    ]


def _fit_sentence(fit: dict[str, Any], config: ModelConfig) -> str:
    needed = human_bytes(fit["needed"])
    if fit["fits"]:
        return f"yes: {needed}, and the cache of {fit['tokens']:,} tokens beside it"
    always = human_bytes(fit["without_experts"])
    if not fit["experts"]:
        rest = f" (without experts {always})" if config.is_sparse else ""
        return f"no: {needed}{rest}"
    experts = f"{fit['experts']} of {config.num_local_experts} experts per layer"
    return f"no: {needed}; what every token uses ({always}) fits, and {experts}"
