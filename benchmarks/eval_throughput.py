"""Scoring multiple-choice files beside lm-evaluation-harness with its transformers model: questions a second.

Both score the same rows in the same forms with the same float32 weights (ours exported to a Hugging Face folder first),
one task after the other, the two sides in turn. The harness is told its best batch size with --batch. Its figure is the
time inside `loglikelihood` alone, without reading rows and building requests; ours is all of `coterie eval`. Scores
must be equal, or the script says which are not. --limit takes that many rows of every file.

    python benchmarks/eval_throughput.py --data $COTERIE_DATA --limit 100 --rounds 3
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import arguments, machine

from coterie.api import LanguageModel, load
from coterie.checkpoint.convert import convert
from coterie.checkpoint.hub import find_model
from coterie.eval.harness_table import FORMS
from coterie.eval.harness_tasks import write_tasks
from coterie.eval.registry import GROUPS
from coterie.eval.rows import Files
from coterie.eval.run import TaskReport, evaluate


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--data", type=Path, default=os.environ.get("COTERIE_DATA"), help="default: $COTERIE_DATA")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, help="rows of every file (default: all)")
    parser.add_argument("--batch", default="64", help="of the harness's model (default: 64)")
    parser.add_argument("--tasks", nargs="+", default=[n for n in GROUPS["multiple-choice"] if _forms(n)])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    os.environ["TQDM_DISABLE"] = "1"  # before the harness is imported
    print(f"{args.model}, float32, {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        convert(find_model(args.model), Path(folder, "model"), to="huggingface", type="f32")
        lm = load(str(Path(folder, "model")), dtype="float32")
        theirs = Theirs(Path(folder), args.data, args.tasks, args.limit, args.batch)
        rows = [_measure(lm, theirs, name, args) for name in args.tasks]
    _summary(rows, args.out)


class Theirs:
    """The harness with transformers, on rows written for it."""

    def __init__(self, folder: Path, data: Path, tasks: Sequence[str], limit: int | None, batch: str):
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        forms = [form for task in tasks for form in _forms(task)]
        write_tasks(folder / "tasks", Files(data), forms, limit=limit, cache=folder / "cache")
        self._manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        self._model = HFLM(pretrained=str(folder / "model"), dtype="float32", device="cpu", batch_size=batch)
        self._inner = self._model.loglikelihood
        self._model.loglikelihood = self._timed
        self.seconds = 0.0

    def run(self, name: str) -> dict[str, Any]:
        """Results by task of the harness, which has mc1 and mc2 apart; `seconds` is what its model took."""
        import lm_eval

        self.seconds = 0.0
        found = lm_eval.simple_evaluate(
            self._model,
            tasks=[f"coterie_{form}" for form in _forms(name)],
            bootstrap_iters=0,
            task_manager=self._manager,
            log_samples=False,
        )
        results: dict[str, Any] = found["results"]
        return results

    def _timed(self, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        answers = self._inner(*args, **options)
        self.seconds += time.perf_counter() - start
        return answers


def _measure(lm: LanguageModel, theirs: Theirs, name: str, args: Any) -> dict[str, Any]:
    ours_s, theirs_s = list[float](), list[float]()
    for number in range(args.rounds):
        for is_ours in (True, False) if number % 2 else (False, True):
            if is_ours:
                start = time.perf_counter()
                (report,) = evaluate(lm, [name], data=args.data, limit=args.limit).tasks
                ours_s.append(time.perf_counter() - start)
            else:
                results = theirs.run(name)
                theirs_s.append(theirs.seconds)
    ours_median, theirs_median = statistics.median(ours_s), statistics.median(theirs_s)
    row = {
        "task": name, "questions": report.n_items, "ours": ours_median, "lm-eval": theirs_median,
        "ratio": theirs_median / ours_median, "tokens read": report.n_tokens,
        "same": _same(report, {form: results[f"coterie_{form}"] for form in _forms(name)}),
    }  # fmt: skip
    has_other_rows = args.limit and len(_forms(name)) == 1 and any(m.group for m in report.metrics)
    said = (
        "same scores"
        if row["same"]
        else "other rows: a limit takes some of every part"
        if has_other_rows
        else "SCORES DIFFER"
    )
    print(
        f"  {name:<15} {report.n_items:6} questions  ours {ours_median:8.2f} s  lm-eval {theirs_median:8.2f} s  "
        f"{row['ratio']:6.2f}  {said}",
        flush=True,
    )
    return row


def _forms(name: str) -> list[str]:
    """The harness's tasks over the file that a task of ours has the name of."""
    return [form for form in FORMS if FORMS[form].file == name]


def _same(report: TaskReport, results: dict[str, dict[str, Any]]) -> bool:
    """Whether what both have is the same; a perplexity, which float32 kernels move in the sixth digit, to five."""
    mine = {m.name: m.value for m in report.metrics if not m.group}
    both = []
    for form, figures in results.items():
        for key, value in figures.items():
            name = key.partition(",")[0]
            name = form[-3:] if len(results) > 1 and name == "acc" else name  # acc of ..._mc1 is our mc1
            both += [(value, mine[name])] if name in mine else []
    return bool(both) and all(abs(a - b) <= 1e-5 * max(1.0, abs(a)) for a, b in both)


def _summary(rows: list[dict[str, Any]], out: Path | None) -> None:
    ours, theirs = (sum(row[side] for row in rows) for side in ("ours", "lm-eval"))
    n = sum(row["questions"] for row in rows)
    print(f"all: {n} questions, ours {n / ours:.1f} a second, lm-eval {n / theirs:.1f}, ratio {theirs / ours:.2f}")
    if out is not None:
        total = {"questions": n, "ours": ours, "lm-eval": theirs, "ratio": theirs / ours}
        out.write_text(json.dumps({"machine": machine(), "tasks": rows, "all": total}, indent=1) + "\n")


if __name__ == "__main__":
    main()
