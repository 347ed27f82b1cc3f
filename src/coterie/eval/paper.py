"""`coterie eval MODEL --paper`: what the Mixtral paper reports, beside the same measured on any model.

Tables 2 to 5 and the table on bias, each a `Section`: the published figures, ours with its interval, both protocols.
Whatever is not there (a file, a judge, the permission to run code) is left out and said, with what it would take.
Every benchmark is a run of its own in the run folder, so an interrupted one goes on where it stopped.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.analysis.section import Section
from coterie.analysis.trace import Trace
from coterie.api import LanguageModel
from coterie.errors import CoterieError, RequestError, nearest
from coterie.eval.paper_bias import BOLD_BENCH, bias_section
from coterie.eval.paper_cells import COLUMNS_OURS, interval, ours
from coterie.eval.paper_repeats import repeats_section
from coterie.eval.paper_tables import BBQ, LANGUAGES, TABLE_2, TABLE_3, TABLE_4, Bench
from coterie.eval.paper_trace import record_texts
from coterie.eval.registry import TASKS, make
from coterie.eval.rows import Files
from coterie.eval.run import TaskReport, evaluate
from coterie.eval.task import Context

__all__ = ["Runs", "paper", "paper_sections", "table"]

_ALSO_4 = Bench("EXAMS", "exams", "not there", {})


@dataclass
class Runs:
    """Asks a model for benchmarks, each once whichever tables it is in; answers why not where it cannot be asked."""

    lm: LanguageModel
    data: Path | None
    limit: int | None = None
    seed: int = 0
    run_dir: Path | None = None
    run_code: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    done: dict[tuple[str, int | None, int | None], TaskReport | str] = field(default_factory=dict)

    def __call__(self, bench: Bench) -> TaskReport | str:
        key = (bench.task, bench.shots, bench.samples)
        if key not in self.done:
            self.done[key] = self._run(bench)
        return self.done[key]

    def _run(self, bench: Bench) -> TaskReport | str:
        files = Files(self.data)
        name = bench.task
        if name not in TASKS:  # a translation, in a file of its own
            path = files.find(name)
            if path is None or "." not in name:
                return f"no {name}.jsonl in the data" if path is None else "coterie has no task for it"
            name = str(path)
        context = Context(files, run_code=self.run_code, settings=self.settings)
        task = make(name, context)
        if name in TASKS and not task.is_there(context):
            return f"no {task.file or bench.task}.jsonl in the data"
        if task.runs_code and not self.run_code:
            return "it runs code that the model writes: --run-code"
        if bench.needs and bench.needs not in self.settings:
            return f"no {bench.needs} was named: --{bench.needs}"
        try:
            return evaluate(
                self.lm, [name], data=self.data, limit=self.limit, shots=bench.shots, seed=self.seed,
                samples=bench.samples, run_dir=self._folder(bench), run_code=self.run_code,
                settings={key: value for key, value in self.settings.items() if key in task.settings},
                progress=self.progress,
            ).tasks[0]  # fmt: skip
        except CoterieError as error:
            return str(error)

    def _folder(self, bench: Bench) -> Path | None:
        shots = "" if bench.shots is None else f"-{bench.shots}-shots"
        return None if self.run_dir is None else self.run_dir / f"{bench.task}{shots}"


def paper(runs: Runs) -> list[Section]:
    """All tables, with a trace recorded for the fifth."""
    _check_settings(runs.settings)
    if runs.run_dir is not None:
        runs.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        path = (runs.run_dir or Path(scratch)) / "table-5.trace"
        trace = record_texts(runs.lm, Files(runs.data), path, progress=runs.progress)
        return paper_sections(runs, trace)


def paper_sections(runs: Runs, trace: Trace | str) -> list[Section]:
    """The five tables; `trace` is a recording for the fifth, or why there is none."""
    return [
        table(runs, "table-2", "Table 2: benchmarks", TABLE_2),
        table(runs, "table-3", "Table 3: beside Llama 2 70B and GPT-3.5", TABLE_3),
        _with_exams(runs, table(runs, "table-4", "Table 4: languages", TABLE_4)),
        repeats_section(trace, runs.lm.name),
        bias_section(runs),
    ]


def _check_settings(settings: Mapping[str, str]) -> None:
    """Each benchmark takes its own, so one that none takes would get lost."""
    names = {bench.task for bench in (*TABLE_2, *TABLE_3, *TABLE_4, _ALSO_4, BBQ, BOLD_BENCH)} & TASKS.keys()
    known = sorted({name for task in names for name in make(task, Context(Files(None))).settings})
    for name in settings:
        if name not in known:
            raise RequestError(f"no benchmark of the paper has a setting {name!r}{nearest(name, known)}")


def table(runs: Callable[[Bench], TaskReport | str], key: str, title: str, benches: Sequence[Bench]) -> Section:
    """One line for each benchmark: published figures, ours with its 95 % interval, protocols."""
    models = list(dict.fromkeys(model for bench in benches for model in bench.published))
    rows, missing, facts = [], dict[str, str](), dict[str, Any]()
    for bench in benches:
        found = runs(bench)
        cells = ours(bench, found)
        rows.append((bench.name, bench.protocol, *(bench.published.get(model) for model in models), *cells))
        facts[bench.name] = {"published": dict(bench.published), **dict(zip(COLUMNS_OURS, cells, strict=True))}
        if isinstance(found, str):
            missing[bench.name] = found
            facts[bench.name]["not run"] = found
    columns = ("benchmark", "in the paper", *models, *COLUMNS_OURS)
    note = (
        "Published figures: arXiv 2401.04088. Ours: the value, its 95 % interval (Wilson's, of a share), the number of "
        "questions, what guessing gives; files may be cut, so the questions are not all of the paper's."
    )
    return Section(key, title, _sentence(len(benches), missing), columns, tuple(rows), note=note, facts=facts)


def _sentence(n: int, missing: Mapping[str, str]) -> str:
    """How many were run, which files would be needed, and what else kept a benchmark from being run."""
    if not missing:
        return f"All {n} benchmarks were run."
    sentences = [f"{n - len(missing)} of {n} benchmarks were run."]
    begin, end = "no ", " in the data"
    files = [why[len(begin) : -len(end)] for why in missing.values() if why.startswith(begin) and why.endswith(end)]
    if files:
        sentences.append(f"Not in the data: {', '.join(files)}.")
    reasons: dict[str, list[str]] = {}
    for name, why in missing.items():
        if not why.endswith(end):
            reasons.setdefault(why, []).append(name)
    sentences += [f"Not run: {', '.join(names)} ({why})." for why, names in reasons.items()]
    return " ".join(sentences)


def _with_exams(runs: Runs, section: Section) -> Section:
    """School exams by language below the paper's translated benchmarks, which are not public."""
    found = runs(_ALSO_4)
    if isinstance(found, str):
        return section
    n_published = len(section.columns) - 2 - len(COLUMNS_OURS)
    rows = list(section.rows)
    for metric in found.metrics:
        if metric.group and metric.name == found.main:
            chance = None if metric.chance is None else 100 * metric.chance
            cells = (*interval(metric, 100), metric.n, chance, found.protocol)
            language = LANGUAGES.get(metric.group, metric.group)
            rows.append((f"EXAMS, {language}", _ALSO_4.protocol, *(None,) * n_published, *cells))
    sentence = f"{section.sentence} School exams in the same languages stand below: they are not in the paper."
    return Section(
        section.key, section.title, sentence, section.columns, tuple(rows), note=section.note, facts=section.facts
    )
