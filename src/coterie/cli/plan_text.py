"""The plan of `coterie plan` as text: one block of aligned columns after another."""

import math
from typing import Any

from coterie.cli.output import human_bytes, human_count, human_operations, print_table, printable
from coterie.cli.train_view import human_time

__all__ = ["print_plan"]


def print_plan(document: dict[str, Any]) -> None:
    """Print what `coterie.cli.plan.plan_recipe` found, for people."""
    tokens, parameters = document["tokens"], document["parameters"]
    kind = "dense" if document["config"]["num_local_experts"] is None else "sparse"
    print(printable(
        f"{document['recipe']}: a {kind} model, {human_count(tokens['total'])} tokens in {tokens['steps']:,} steps "
        f"on {document['device']} in {document['dtype']}"
    ))  # fmt: skip
    print()
    operations = document["operations"]
    print_table([
        ("parameters", f"{parameters['total']:,}"),
        ("used by a token", f"{parameters['active']:,}"),
        ("operations of a token", human_operations(operations["per_token"])),
        ("operations of the run", human_operations(operations["total"])),
    ], indent=0)  # fmt: skip
    _print_memory(document)
    _print_time(document)
    _print_text(document)
    _print_losses(document)
    _print_upcycling(document)
    for warning in document["warnings"]:
        print(printable(f"\nWarning: {warning}.", keep="\n"))


def _print_memory(document: dict[str, Any]) -> None:
    memory = document["memory"]
    static, kept = memory["static"], memory["activations"]
    how = "measured" if memory["is_measured"] else "by formula; temporaries and torch itself come on top"
    print(f"\nMemory of a step, {how}")
    block = "feed-forward" if document["config"]["num_local_experts"] is None else "experts and router"
    rows = [
        ("weights", static["weights"], document["dtype"]),
        ("masters", static["masters"], "float32"),
        ("moments", static["moments"], document["optimizer"]),
        ("gradients", static["gradients"], "float32, after backward"),
        ("kept by attention", kept["attention"], "before backward"),
        (f"kept by {block}", kept["experts"], "before backward"),
        ("kept by norms", kept["norms"], "before backward"),
        ("cross-entropy", kept["loss"], "before backward"),
    ]
    if memory["is_measured"]:
        rows += [("Python and torch", memory["framework"], ""), ("the rest", memory["rest"], "temporaries, allocator")]
    fits = "fits" if memory["fits"] else "does not fit"
    rows += [("highest moment", memory["peak"], f"{fits}: {human_bytes(memory['available'])} are free")]
    print_table([(name, human_bytes(n), note) for name, n, note in rows if n])


def _print_time(document: dict[str, Any]) -> None:
    if document["seconds"] is None:
        reason = f": {document['not_measured']}" if document["not_measured"] else ""
        print(f"\nTime: {printable(f'not measured{reason}')}")
        return
    seconds, peak = document["seconds"], document["matrix_peak"]
    print("\nTime on this machine, as busy as it is now")
    rows: list[tuple[str, ...]] = []
    for phase, samples in zip(document["phases"], document["samples"], strict=True):
        speed = phase["operations"] / phase["seconds"]
        n_tokens = document["tokens"]["per_step"] / phase["seconds"]
        depths = " and ".join(str(s["layers"]) for s in samples)
        rows.append((
            f"a step, rows of {phase['sequence']:,}", _step_time(phase["seconds"]), f"{n_tokens:,.0f} tokens/s",
            f"{human_operations(speed)}/s, {speed / peak:.0%} of the matrix peak; measured with {depths} layers",
        ))  # fmt: skip
    rows += [
        (f"all {document['tokens']['steps']:,} steps", human_time(seconds["steps"])),
        ("scoring the valid files", human_time(seconds["scoring"]), "", "a guess: a third of training's time a token"),
        ("in all", human_time(seconds["total"]), "", "without training a vocabulary and tokenising"),
    ]
    print_table(rows)


def _step_time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 99.5 else human_time(seconds)


def _print_text(document: dict[str, Any]) -> None:
    print("\nText")
    rows = []
    for corpus in document["text"]:
        how = "counted by an earlier run" if corpus["is_counted"] else "estimated from its size"
        if corpus["problem"]:
            rows.append((printable(corpus["name"]), "?", "tokens", "not here"))
            continue
        read = f"read {corpus['epochs']:.2g} times"
        rows.append((printable(corpus["name"]), human_count(corpus["tokens"]), "tokens", f"{how}, {read}"))
    print_table(rows)


def _print_losses(document: dict[str, Any]) -> None:
    print("\nLoss to expect, nats per token of the law's own vocabulary")
    knows_nothing = math.log(document["config"]["vocab_size"])
    for prediction in document["losses"]:
        law = prediction["law"]
        print(f"  {prediction['loss']:.2f}  {law['name']} ({law['source']}), fitted on {law['fitted_on']}")
        if prediction["beyond"]:
            print("        extrapolated: " + "; ".join(prediction["beyond"]))
        if prediction["loss"] > knows_nothing:
            print(f"        no use here: guessing blindly among the pieces of this vocabulary is {knows_nothing:.2f}")
    optimum, n = document["optimum"], document["tokens"]["total"] / document["parameters"]["active"]
    print(
        f"  {n:.3g} tokens for each active parameter; the first law would spend these operations on "
        f"{human_count(optimum['parameters'])} parameters and {human_count(optimum['tokens'])} tokens"
    )


def _print_upcycling(document: dict[str, Any]) -> None:
    upcycling = document["upcycling"]
    below, above = human_count(upcycling["loses_below"]), human_count(upcycling["wins_above"])
    print("\nUpcycling a dense model instead of starting from scratch, for a run of these tokens")
    print(f"  pays if the dense model saw more than {above} tokens, and not if it saw fewer than {below};")
    print("  between, two reports disagree. A rule from models a thousand times larger:")
    for report in upcycling["reports"]:
        print(f"    scratch catches up after {report['share']:.0%} of the dense model's tokens ({report['source']}:")
        print(f"    {report['measured_on']})")
