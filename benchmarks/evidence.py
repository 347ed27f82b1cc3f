"""What a sparse model is worth at a size that two cores can train: the runs behind docs/evidence.md.

python benchmarks/evidence.py             all runs, under two hours on two fast cores; after a stop it goes on
python benchmarks/evidence.py --jobs 2    two at a time, a core each: sooner done, and seconds can still be compared
python benchmarks/evidence.py --only 1,3 --seeds 1 --budget-scale 0.1
python benchmarks/evidence.py --report    docs/evidence.json, docs/evidence-*.svg and the tables of docs/evidence.md

1 sparse beside dense, 2 upcycling, 3 routers, 4 balance terms. Every run is `coterie train` of a recipe in
recipes/evidence/ with a few keys changed; its recipe, log and model stay in RUNS/NAME-seedN. Runs of one seed read the
same batches. Needs COTERIE_DATA. On a machine that does something else at the same time, seconds mean nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence_report import write_report

from coterie.cli.train_data import prepare_tokens
from coterie.router_config import ROUTER_KINDS, RouterConfig
from coterie.tokenizer.load import load_tokenizer
from coterie.train.recipe import read_recipe

ROOT = Path(__file__).parents[1]
EXPERTS, TOP_K = 8, 2
CONTINUED = 1000  # added to the seed of the batches of a second training, which does not read the first's again
Changes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A run of an experiment: a recipe, what is changed in it, for how many seeds, and how long."""

    experiment: int
    name: str
    base: str = "sparse"
    changes: Changes = field(default_factory=dict)
    seeds: int = 3
    parent: str = ""  # the run whose model is `init_key`
    init_key: str = ""
    length: float = 1.0  # times the steps of the recipe
    as_long_as: str = ""  # as many steps as take the time of that run


def router(kind: str) -> Variant:
    """Experiment 3: capacities as in the papers, the experts per token that the kind is defined for."""
    capacity = {"switch": 1.25, "gshard": 2.0}.get(kind, 0.0)
    top_k = RouterConfig(kind=kind).top_k_for(EXPERTS, TOP_K)
    changes: Changes = {"router": {"kind": kind, "capacity": capacity}, "model": {"num_experts_per_tok": top_k}}
    if kind == "sigmoid_bias":
        changes["balance"] = {"bias": 0.001}
    if kind == "noisy_topk":
        changes["balance"] = {"load": 0.0, "importance": 0.1, "noisy_load": 0.1}
    return Variant(3, f"router-{kind}", changes=changes, seeds=1)


def balance(name: str, router: str = "topk", **keys: Any) -> Variant:
    return Variant(4, f"balance-{name}", changes={"balance": keys, "router": {"kind": router}}, seeds=1)


SPLIT: Changes = {"init": {"method": "split", "granularity": 2}, "model": {"norm_topk_prob": False}}
VARIANTS = (
    Variant(1, "dense", "dense"),
    Variant(1, "sparse"),
    Variant(1, "dense-as-long", "dense", as_long_as="sparse"),
    Variant(2, "continued", "dense", parent="dense", init_key="from"),
    Variant(2, "upcycled", changes={"model": {"intermediate_size": 352}}, parent="dense", init_key="upcycle"),
    Variant(2, "upcycled-split", changes=SPLIT, parent="dense", init_key="upcycle"),
    Variant(2, "sparse-twice", length=2.0),
    *(router(kind) for kind in ROUTER_KINDS if kind != "topk"),
    balance("none", load=0.0, z=0.0),
    balance("load", load=0.01, z=0.0),
    balance("z", load=0.0, z=0.001),
    balance("load-strong", load=0.1, z=0.001),
    balance("sequence", scope="sequence"),
    balance("micro", scope="micro"),
    balance("bias", "sigmoid_bias", load=0.0, z=0.0, bias=0.001),
    balance("no-bias", "sigmoid_bias", load=0.0, z=0.0),
)
NEEDS = {2: (1,), 3: (1,), 4: (1,)}  # the runs of experiment 1 that the others are compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="1,2,3,4", help="experiments (default: 1,2,3,4); what they need of 1 is run too"
    )
    parser.add_argument("--seeds", type=int, default=3, help="at most so many seeds of a run (default: 3)")
    parser.add_argument("--budget-scale", type=float, default=1.0, help="times the steps of the recipes (default: 1)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each on its share of the cores (default: 1)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument(
        "--report", action="store_true", help="write what the finished runs say into docs/, run nothing"
    )
    args = parser.parse_args()
    if args.report:
        write_report(args.runs, ROOT / "docs")
        return
    failed = run_all(
        [int(n) for n in args.only.split(",")], args.seeds, args.budget_scale, args.runs.resolve(), args.jobs
    )
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the same command tries these again")


def run_all(experiments: list[int], seeds: int, scale: float, runs: Path, jobs: int) -> list[str]:
    """Run what is not finished, `jobs` at a time on as many shares of the cores; the names of the runs that failed."""
    prepare(runs)
    todo = list(planned(experiments, seeds))
    started: dict[str, Future[bool]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for number, (variant, seed) in enumerate(todo, 1):
            needed = [f"{name}-seed{seed}" for name in (variant.parent, variant.as_long_as) if name]
            earlier = [started[name] for name in needed if name in started]
            title = f"{variant.name}-seed{seed} ({number} of {len(todo)})"
            started[f"{variant.name}-seed{seed}"] = pool.submit(
                run_one, variant, seed, scale, runs, jobs, earlier, title
            )
    return [name for name, run in started.items() if not run.result()]


def run_one(
    variant: Variant, seed: int, scale: float, runs: Path, jobs: int, earlier: list["Future[bool]"], title: str
) -> bool:
    """Whether the run is finished; it starts when those it needs, which were started before it, have ended."""
    folder = runs / f"{variant.name}-seed{seed}"
    if (folder / "scores.json").exists():
        return True
    for other in earlier:
        other.result()
    print(f"== {title}", file=sys.stderr, flush=True)
    try:
        recipe = recipe_of(variant, seed, scale, runs)
    except FileNotFoundError as e:
        print(f"needs a run that is not finished: {e.filename}", file=sys.stderr)
        return False
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(toml(recipe), encoding="utf-8")
    if not (folder / "tokens").exists():
        (folder / "tokens").symlink_to(runs / "tokens")
    return train(folder / "recipe.toml", "--out", str(folder), jobs=jobs) == 0


def planned(experiments: list[int], seeds: int) -> Iterator[tuple[Variant, int]]:
    """Seed by seed, so that a run that others need comes before them."""
    wanted = {*experiments, *(need for n in experiments for need in NEEDS.get(n, ()))}
    for seed in range(seeds):
        for variant in VARIANTS:
            only_compared = variant.experiment not in experiments and variant.as_long_as
            if variant.experiment in wanted and seed < variant.seeds and not only_compared:
                yield variant, seed


def prepare(runs: Path) -> None:
    """One vocabulary and one set of tokens for all runs."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "tokens").mkdir(exist_ok=True)
    if not (runs / "tokenizer").exists() and train(source("sparse"), "--tokenizer", "--out", str(runs)):
        sys.exit("the vocabulary could not be trained")
    tokenizer = load_tokenizer(runs / "tokenizer")
    prepare_tokens(read_recipe(source("sparse")).data.files, tokenizer, runs / "tokenizer", runs)


def source(base: str) -> Path:
    return ROOT / "recipes" / "evidence" / f"{base}.toml"


def train(recipe: Path, *options: str, jobs: int = 1) -> int:
    """The exit code of `coterie train` on its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    command = [sys.executable, "-m", "coterie", "train", str(recipe), *options]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}, check=False).returncode


def recipe_of(variant: Variant, seed: int, scale: float, runs: Path) -> Changes:
    """The base recipe with the changes, seeds, steps and paths of one run; `FileNotFoundError` where a parent lacks."""
    recipe: Changes = tomllib.loads(source(variant.base).read_text(encoding="utf-8"))
    for section, keys in variant.changes.items():
        recipe[section] = recipe.get(section, {}) | keys
    recipe["data"]["tokenizer"] = str(runs / "tokenizer")
    recipe["train"]["seed"] = seed
    recipe["init"] = recipe.get("init", {}) | {"seed": seed}
    if variant.parent:
        model = runs / f"{variant.parent}-seed{seed}" / "model"
        os.stat(model)
        recipe["init"][variant.init_key] = str(model)
        recipe["train"]["seed"] += CONTINUED
    steps = round(recipe["train"]["steps"] * scale * variant.length)
    if variant.as_long_as:
        steps = round(
            steps * seconds_per_token(runs, variant.as_long_as, seed) / seconds_per_token(runs, "dense", seed)
        )
    recipe["train"] |= {"steps": steps, "warmup": min(recipe["train"]["warmup"], steps // 10)}
    recipe["run"] |= {"eval_every": max(1, steps // 4), "save_every": max(1, steps // 4)}
    return recipe


def seconds_per_token(runs: Path, name: str, seed: int) -> float:
    lines = (runs / f"{name}-seed{seed}" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return 1 / statistics.median(json.loads(line)["tokens_per_s"] for line in lines)


def toml(recipe: Changes) -> str:
    """TOML of sections of plain values: what JSON writes for them is TOML too."""
    lines = []
    for section, keys in recipe.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
