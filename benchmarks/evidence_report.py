"""From the runs of evidence.py to docs/: figures as JSON, tables between marks in a page, curves as SVG.

Losses are running means over a fortieth of the steps; the seconds of a run are those of its updates alone, without
evaluation and saving. `±` is the standard deviation over seeds.
"""

import json
import os
import re
import statistics
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coterie.checkpoint.folder import open_checkpoint
from coterie.device import cpu_name
from coterie.sizes import active_parameters, parameters
from coterie.train.chart import Curve, line_chart
from coterie.train.compare import read_log, row_of, smooth

__all__ = ["write_report"]

POINTS = 60  # of a curve that is kept
PAGE = "# Evidence\n\n" + "\n\n".join(f"<!-- evidence {n} -->\n<!-- end -->" for n in range(1, 5)) + "\n"
Run = dict[str, Any]
Runs = dict[str, list[Run]]  # of each name, one a seed


def write_report(folder: Path, docs: Path) -> None:
    """evidence.json, evidence-*.svg and the tables of evidence.md, whose other text stays."""
    runs = collect(folder)
    machine = f"{cpu_name()}, {os.cpu_count()} cores"
    document = {"command": "python benchmarks/evidence.py", "machine": machine, "runs": runs}
    (docs / "evidence.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    page = docs / "evidence.md"
    text = page.read_text(encoding="utf-8") if page.exists() else PAGE
    for number, (table, pictures) in EXPERIMENTS.items():
        body = table(runs)
        for name, svg in pictures(runs).items():
            (docs / f"evidence-{name}.svg").write_text(svg, encoding="utf-8")
            body += f"\n![{name}](evidence-{name}.svg)\n"
        text = replace_block(text, number, body)
    page.write_text(text, encoding="utf-8")


def replace_block(text: str, number: int, body: str) -> str:
    pattern = rf"(<!-- evidence {number} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{body}\n{m[2]}", text, flags=re.DOTALL)


def collect(folder: Path) -> Runs:
    """Of every finished run what the report needs."""
    runs: Runs = {}
    for path in sorted(folder.glob("*-seed*/scores.json")):
        name, _, seed = path.parent.name.rpartition("-seed")
        runs.setdefault(name, []).append({"seed": int(seed)} | figures(name, path.parent))
    return runs


def figures(name: str, run: Path) -> Run:
    log, row = read_log(run), row_of(name, run)
    config = open_checkpoint(run / "model").config
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    tokens, seconds, size, curve = 0, 0.0, step_tokens(run), []
    for record, loss in zip(log, smooth(log), strict=True):
        tokens, seconds = tokens + size, seconds + size / record["tokens_per_s"]
        curve.append([tokens / 1e6, round(seconds, 2), round(loss, 4), round(record["max_vio"], 3)])
    every = max(1, len(curve) // POINTS)
    return {
        "steps": len(log), "tokens": tokens, "seconds": round(seconds, 1), "tokens_per_s": round(row.tokens_per_s),
        "bits_per_byte": row.bits_per_byte, "by_file": {k: v["bits_per_byte"] for k, v in scores.items()},
        "loss": row.loss, "max_vio": row.max_vio, "entropy": row.entropy, "idle": row.idle, "dropped": row.dropped,
        "can_decode": row.can_decode, "parameters": parameters(config).total,
        "active": active_parameters(config).total, "curve": curve[every - 1 :: every],
        "alarms": sum(len(r.get("alarms", [])) for r in log),
    }  # fmt: skip


def step_tokens(run: Path) -> int:
    """Tokens of a step, from the recipe beside the log."""
    train = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))["train"]
    return int(train["batch"] * train["sequence"])


def mean_of(runs: Sequence[Run], key: str) -> float:
    return statistics.mean(r[key] for r in runs)


def mean(runs: Sequence[Run], key: str, digits: int = 3) -> str:
    """`2.345 ± 0.006`, of one run `2.345`."""
    values = [r[key] for r in runs]
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def difference(runs: Runs, one: str, other: str) -> str:
    """Bits per byte of `one` less those of `other`, seed by seed, and in per cent."""
    pairs = [(a["bits_per_byte"], b["bits_per_byte"]) for a in runs[one] for b in runs[other] if a["seed"] == b["seed"]]
    gaps = [a - b for a, b in pairs]
    spread = f" ± {statistics.stdev(gaps):.3f}" if len(gaps) > 1 else ""
    share = statistics.mean(a / b - 1 for a, b in pairs)
    return f"{one} less {other}: {statistics.mean(gaps):+.3f}{spread} bits per byte ({share:+.1%})."


def loss_at(runs: Sequence[Run], seconds: float) -> float:
    """Mean over seeds of the smoothed training loss after so many seconds of updates, linear between points."""
    found = []
    for run in runs:
        before = [point for point in run["curve"] if point[1] <= seconds] or run["curve"][:1]
        after = [point for point in run["curve"] if point[1] > seconds] or before[-1:]
        (_, t0, y0, _), (_, t1, y1, _) = before[-1], after[0]
        share = (seconds - t0) / (t1 - t0) if t1 > t0 else 0.0
        found.append(y0 + min(max(share, 0.0), 1.0) * (y1 - y0))
    return statistics.mean(found)


def table(runs: Runs, names: dict[str, str], *, is_sorted: bool = False) -> str:
    """A row for each run that is there; `names` gives what it is called."""
    there = [name for name in names if name in runs]
    if is_sorted:
        there.sort(key=lambda name: statistics.mean(r["bits_per_byte"] for r in runs[name]))
    lines = [
        "| | parameters | active | tokens | bits/byte, valid | train loss | MaxVio | entropy | idle | dropped | tok/s "
        "| seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in there:
        r, first = runs[name], runs[name][0]
        load = (
            [mean(r, "max_vio", 2), mean(r, "entropy"), mean(r, "idle", 1), f"{mean_of(r, 'dropped'):.1%}"]
            if first["parameters"] > first["active"] or first["entropy"] < 1
            else ["–"] * 4
        )
        cells = [
            names[name] + ("" if first["can_decode"] else r" \*"), f"{first['parameters'] / 1e6:.2f} M",
            f"{first['active'] / 1e6:.2f} M", f"{first['tokens'] / 1e6:.2f} M", mean(r, "bits_per_byte"),
            mean(r, "loss"), *load, f"{mean_of(r, 'tokens_per_s'):,.0f}", f"{mean_of(r, 'seconds'):.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    if any(not runs[name][0]["can_decode"] for name in there):
        lines += ["", r"\* routes a token by later ones: its figures are flattered, and it cannot write text."]
    return "\n".join([*lines, ""])


def curves(runs: Runs, names: dict[str, str], title: str, *, x: int = 0, y: int = 2, x_label: str = "") -> str:
    """Means over seeds, and the band of all of them; x 0: tokens, 1: seconds; y 2: loss, 3: MaxVio."""
    drawn = []
    for name, shown in names.items():
        if name in runs:
            points = list(zip(*(run["curve"] for run in runs[name]), strict=False))  # of all seeds together
            line = [(statistics.mean(p[x] for p in group), statistics.mean(p[y] for p in group)) for group in points]
            spans = [(at, min(p[y] for p in g), max(p[y] for p in g)) for (at, _), g in zip(line, points, strict=True)]
            drawn.append(Curve(shown, line, spans if len(runs[name]) > 1 else ()))
    late = [v for curve in drawn for _, v in curve.points[len(curve.points) // 6 :]]
    y_range = (min(late), max(late)) if late and max(late) > min(late) else None
    y_label = {2: "training loss (nats per token)", 3: "MaxVio"}[y]
    labels = {"x_label": x_label or ("million tokens", "seconds of updates")[x], "y_label": y_label}
    return line_chart(drawn, title=title, y_range=y_range, **labels)


NAMES_1 = {"sparse": "8 experts, top 2", "dense": "dense", "dense-as-long": "dense, as long as sparse"}
NAMES_2 = {
    "dense": "dense (the parent)", "continued": "dense, continued", "upcycled": "upcycled, copies",
    "upcycled-split": "upcycled, split in two", "sparse": "sparse, from scratch",
    "sparse-twice": "sparse, from scratch, both budgets",
}  # fmt: skip
NAMES_4 = {
    "sparse": "load 0.01, z 0.001 (global)", "balance-none": "none", "balance-load": "load alone",
    "balance-z": "z alone", "balance-load-strong": "load 0.1, z", "balance-sequence": "scope sequence",
    "balance-micro": "scope micro", "balance-bias": "sigmoid, bias 0.001 alone", "balance-no-bias": "sigmoid, nothing",
}  # fmt: skip


def names_3(runs: Runs) -> dict[str, str]:
    return {"sparse": "topk"} | {name: name.removeprefix("router-") for name in runs if name.startswith("router-")}


def seed_0(runs: Runs) -> Runs:
    """For experiments of one seed: the runs beside them too."""
    return {name: [r for r in found if r["seed"] == 0] for name, found in runs.items()}


def table_1(runs: Runs) -> str:
    text = table(runs, NAMES_1)
    if {"sparse", "dense"} <= runs.keys():
        text += "\n" + difference(runs, "sparse", "dense") + "\n"
        seconds = min(r["seconds"] for name in ("sparse", "dense") for r in runs[name])
        a, b = loss_at(runs["sparse"], seconds), loss_at(runs["dense"], seconds)
        text += f"\nTraining loss after {seconds:.0f} seconds of updates each: sparse {a:.3f}, dense {b:.3f}.\n"
    if {"sparse", "dense-as-long"} <= runs.keys():
        text += "\n" + difference(runs, "sparse", "dense-as-long") + "\n"
    return text


def table_2(runs: Runs) -> str:
    text = table(runs, NAMES_2)
    for name in ("upcycled", "upcycled-split", "sparse-twice"):
        if {name, "continued"} <= runs.keys():
            text += "\n" + difference(runs, name, "continued") + "\n"
    return text


EXPERIMENTS: dict[int, tuple[Callable[[Runs], str], Callable[[Runs], dict[str, str]]]] = {
    1: (table_1, lambda runs: {
        "1-tokens": curves(runs, NAMES_1, "Sparse and dense, by tokens"),
        "1-seconds": curves(runs, NAMES_1, "Sparse and dense, by time", x=1),
    }),
    2: (table_2, lambda runs: {
        "2": curves(
            runs, {k: v for k, v in NAMES_2.items() if k not in ("dense", "sparse-twice")}, "A second budget",
            x_label="million tokens of the second training",
        ),
    }),
    3: (lambda runs: table(seed_0(runs), names_3(runs), is_sorted=True), lambda runs: {
        "3": curves(seed_0(runs), names_3(runs), "Routers on the same batches"),
    }),
    4: (lambda runs: table(seed_0(runs), NAMES_4), lambda runs: {
        "4-loss": curves(seed_0(runs), NAMES_4, "Balance terms: loss"),
        "4-balance": curves(seed_0(runs), NAMES_4, "Balance terms: the busiest expert", y=3),
    }),
}  # fmt: skip
