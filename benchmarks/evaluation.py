"""Write docs/evaluation.md from the run.json of evaluations: the text is here, every figure is theirs.

    export COTERIE_DATA=...
    coterie eval demo all --run-code -o runs/evaluation
    coterie eval demo --paper -o runs/paper
    python benchmarks/evaluation.py runs/evaluation --paper runs/paper -o docs/evaluation.md

Several runs may be named; of a task that is in more than one the last counts. Without a run there is the text alone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.analysis.section import shown
from coterie.eval.registry import GROUPS
from coterie.eval.run_file import read_run

_HEAD = """# Evaluation

`coterie eval MODEL TASK...` measures a model on local files: nothing is downloaded. Every score comes with its
protocol, its standard error, what guessing gives, and the seconds it took.

```
export COTERIE_DATA=data                               # or --data; files lie in it, or in its eval/ and text/
coterie eval demo arc_easy piqa --limit 200 -o runs/small
coterie eval demo multiple-choice                      # a group; `all` is everything that can run
coterie eval demo my_questions.jsonl --json            # a file of your own
coterie eval demo hellaswag --shots 10 --plot scores.svg --trace eval.trace
coterie eval --repeat runs/small                       # the same again: are the scores the same?
```

## How it is measured

Multiple choice is by likelihood: each choice is a continuation of the question, and the likeliest is the answer. `acc`
takes the sum of log-probabilities, `acc_norm` that sum per character of the choice. Prompts, normalisation, ties and
truncation are those of lm-evaluation-harness where it has the task, and accuracies are equal to its own, decimal for
decimal, on the same rows (perplexities to five digits: its kernels round elsewhere). `coterie eval MODEL TASK --set
harness=lm-eval` runs the harness itself, with coterie as one of its models. A prompt that is longer than the context
loses its beginning, and the report counts how many did.

What texts share is read once. All questions of a task are put together as a tree of common beginnings: a context is
read once for all its choices, the shots before a subject once for all its questions. A test counts the tokens
(`tests/eval/test_scorer.py`), `benchmarks/eval_throughput.py` measures what it is worth beside the harness.

`--shots N` puts N solved rows before every question, the same ones (drawn by `--seed`) before each, another in place of
the one that is asked; MMLU takes the `dev` rows of the subject, in order. `--limit N` takes N items of a task, of every
part of it (subject, language) as many. ± is the standard error, sd / sqrt n; for MMLU that of the subjects, pooled.

## Files

A task is a name in the table below, or a `.jsonl` (or `.jsonl.gz`) of your own, whose form is read off its fields:

| fields | task |
|---|---|
| `question`, `choices`, `answer` (the place of the right one, from 0); `context` may stand before | multiple choice |
| `question`, `answer` or `answers` | a short answer, compared without case, articles and punctuation |
| `text` | bits per byte and perplexity of each text, every token scored once |

`group`, `subject`, `lang`, `task` or `category` makes parts. A row that lacks a field or whose answer is out of range
is named, with file and line, before anything is read by the model.

## Runs

A run is a folder (`-o RUN`, else `runs/eval/` and the time). `answers.jsonl` holds every answer as soon as it is known:
the same command goes on where an interrupted one stopped, and an answer counts again only where the same model was
asked the very same. `run.json` is written at the end: arguments, seed, versions, a digest of the model's weights and of
every file, each score with protocol, uncertainty and seconds. `--repeat RUN` runs it once more, refuses another model,
and says whether every score is the same number (exit code 2 where one is not).
"""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of runs, or their run.json")
    parser.add_argument("--paper", type=Path, help="the folder of a --paper run")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/evaluation.md"))
    args = parser.parse_args(words)
    documents = [read_run(path) for path in args.runs]
    paper = None if args.paper is None else json.loads((args.paper / "paper.json").read_text(encoding="utf-8"))
    args.out.write_text(page(documents, paper), encoding="utf-8")
    print(f"{args.out}: {len({name for d in documents for name in d['tasks']})} tasks")


def page(documents: Sequence[dict[str, Any]], paper: dict[str, Any] | None = None) -> str:
    """The whole page."""
    tasks: dict[str, Any] = {}
    for document in documents:
        tasks |= document["tasks"]
    parts = [_HEAD, *([_results(documents, tasks), *_details(tasks)] if documents else [])]
    if paper is not None:
        parts += ["## Beside the paper\n", *(_section(section, "###") for section in paper["sections"])]
    return "\n".join(parts)


def _results(documents: Sequence[dict[str, Any]], tasks: dict[str, Any]) -> str:
    model, machine = documents[-1]["model"], documents[-1]["machine"]
    lines = [
        f"## What {model['name']} scores\n",
        f"Model {model['name']} ({model['dtype']}, fingerprint `{model['fingerprint']}`), {machine['threads']} threads "
        f"of {machine['processor']}, coterie {documents[-1]['versions']['coterie']}. Made by:\n",
        "```",
        *(_command(document["arguments"]) for document in documents),
        "```\n",
        _verdict(tasks),
        "| task | metric | value | ± | chance | items | seconds | protocol |",
        "|---|---|---:|---:|---:|---:|---:|---|",
        *(line for name, task in tasks.items() for line in _lines(name, task)),
        "",
    ]
    left_out = dict.fromkeys(sentence for document in documents for sentence in document.get("left_out", []))
    lines += [f"Not run: {'; '.join(left_out)}.\n"] if left_out else []
    return "\n".join(lines)


def _verdict(tasks: dict[str, Any]) -> str:
    """How many multiple-choice scores are above guessing, more than two standard errors."""
    heads = [m for name in GROUPS["multiple-choice"] if name in tasks for m in _over_all(tasks[name])[:1]]
    known = [m for m in heads if m["chance"] is not None and m["stderr"]]
    if not known:
        return ""
    above = sum(m["value"] - m["chance"] > 2 * m["stderr"] for m in known)
    below = sum(m["chance"] - m["value"] > 2 * m["stderr"] for m in known)
    return (
        f"Of {len(known)} multiple-choice scores with a chance level, {above} are above it by more than two standard "
        f"errors, {below} below by as much, {len(known) - above - below} are what guessing gives.\n"
    )


def _lines(name: str, task: dict[str, Any]) -> list[str]:
    lines = []
    for number, m in enumerate(_over_all(task)):
        # Of a run that went on, the seconds are those of its last part.
        took = "" if task.get("resumed") else f"{task['seconds']:.1f}"
        first, seconds, protocol = (name, took, task["protocol"]) if number == 0 else ("", "", "")
        cells = [first, m["name"], _figure(m["value"]), _figure(m["stderr"]), _figure(m["chance"]), f"{m['n']:,}"]
        lines.append(f"| {' | '.join([*cells, seconds, _cell(protocol)])} |")
    return lines


def _details(tasks: dict[str, Any]) -> list[str]:
    """By part, then the tables of tasks that bring their own."""
    found = []
    for name, task in tasks.items():
        groups: dict[str, dict[str, Any]] = {}
        for m in task["metrics"]:
            if m["group"]:
                groups.setdefault(m["group"], {})[m["name"]] = m
        if groups:
            found.append(_by_part(name, task["metric"], groups))
        found += [_section(section, "###") for section in task["sections"]]
        found += [f"{name}: {sentence}.\n" for sentence in task["notes"]]
    return ["## By part\n", *found] if found else []


def _by_part(name: str, main_metric: str, groups: dict[str, dict[str, Any]]) -> str:
    rows = [(group, m[main_metric]) for group, m in groups.items() if main_metric in m]
    lines = [
        f"### {name}: {main_metric} by part\n",
        "| part | value | ± | chance | items |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {_cell(group)} | {_figure(m['value'])} | {_figure(m['stderr'])} | {_figure(m['chance'])} | {m['n']:,} |"
        for group, m in rows
    ]
    return "\n".join([*lines, ""])


def _section(section: dict[str, Any], level: str) -> str:
    lines = [f"{level} {section['title']}\n", f"{section['sentence']}\n", f"| {' | '.join(section['columns'])} |"]
    lines += ["|" + "---|" * len(section["columns"])]
    lines += [f"| {' | '.join(_cell(shown(cell)) for cell in row)} |" for row in section["rows"]]
    return "\n".join([*lines, "", f"{section['note']}\n" if section["note"] else ""])


def _over_all(task: dict[str, Any]) -> list[dict[str, Any]]:
    return [m for m in task["metrics"] if not m["group"]]


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _command(arguments: dict[str, Any]) -> str:
    options = [f"--{name} {arguments[name]}" for name in ("limit", "shots", "samples") if arguments[name] is not None]
    options += [f"--seed {arguments['seed']}"] * bool(arguments["seed"]) + ["--run-code"] * arguments["run_code"]
    options += [f"--set {name}={value}" for name, value in arguments["settings"].items()]
    return " ".join(["coterie eval", arguments["model"], *arguments["tasks"], *options])


if __name__ == "__main__":
    main()
