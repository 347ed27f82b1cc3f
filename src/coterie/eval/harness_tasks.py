"""Task files for lm-evaluation-harness over local rows: `dataset_path: json`, so that nothing is downloaded.

    python -c "from coterie.eval.harness_tasks import write_tasks; write_tasks('tasks', '/data')"
    lm_eval --model coterie --model_args pretrained=demo --tasks tasks/coterie_piqa.yaml

The forms are the harness's own, for the field names of our files, each written a second time here in its template
language: the scores that they give check those of `coterie eval`. A task is called `coterie_` and the file's name;
of files with several parts (subjects, languages) there is one task each, and a group.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.errors import DataError
from coterie.eval.harness_file import Form, Function
from coterie.eval.harness_table import FORMS
from coterie.eval.rows import Files, Read

__all__ = ["write_tasks"]

Splits = dict[str, list[dict[str, Any]]]  # rows by "test" (what is scored) and "dev" (examples)


def write_tasks(
    folder: str | Path,
    data: str | Path | Files,
    names: Sequence[str] = tuple(FORMS),
    *,
    limit: int | None = None,
    cache: str | Path | None = None,
) -> list[str]:
    """Write a file for each task whose rows are in `data` (or its `eval/`); returns the names of the tasks.

    `limit` takes so many rows of a file, examples not counted and of every part as many, as `coterie eval` does;
    `cache` is where the harness's reader keeps its copy of the rows. Raises `DataError` where `data` has none of the
    files, or a row lacks a field.
    """
    folder, files = Path(folder), data if isinstance(data, Files) else Files(Path(data))
    if files.folder is None:
        raise DataError("no data folder was named: pass --data DIR, or set COTERIE_DATA to it")
    found = [name for name in names if files.find(FORMS[name].file) is not None]
    if not found:
        stems = ", ".join(sorted({FORMS[name].file for name in names}))
        raise DataError(f"{files.folder} has none of {stems} (.jsonl or .jsonl.gz): name the folder that does (--data)")
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for name in found:
        form = FORMS[name]
        parts = _parts(form, files.rows(form.file), limit)
        names = [_write_part(folder, name, form, part, splits, cache) for part, splits in parts.items()]
        if form.by:
            _dump(folder / f"coterie_{name}.yaml", _group(name, form, names))
    return [f"coterie_{name}" for name in found]


def _parts(form: Form, read: Read, limit: int | None) -> dict[str, Splits]:
    """Rows by part and split, with the fields that the templates read; parts without rows to score are left out."""
    parts: dict[str, Splits] = {}
    turns = []
    for place, row in enumerate(read.rows):
        missing = [name for name in (*form.keep, *([form.by] if form.by else [])) if name not in row]
        if missing:
            raise DataError(f"{read.where(place)}: there is no field {missing[0]!r}, which the task needs")
        name, split = str(row[form.by]) if form.by else "", "dev" if row.get("split") == "dev" else "test"
        rows = parts.setdefault(name, {}).setdefault(split, [])
        if split == "test":
            turns.append((len(rows), name))
        rows.append(dict(form.adapt({field: row[field] for field in form.keep})))
    kept = Counter(name for _, name in sorted(turns)[:limit])
    for name in kept:
        parts[name]["test"] = parts[name]["test"][: kept[name]]
    return {name: splits for name, splits in sorted(parts.items()) if kept[name]}


def _write_part(folder: Path, task: str, form: Form, part: str, splits: Splits, cache: str | Path | None) -> str:
    name = f"coterie_{task}" + (f"_{part.replace(' ', '_').replace('/', '_')}" if part else "")
    paths = {}
    for split, rows in splits.items():
        path = (folder / "rows" / f"{name}.{split}.jsonl").resolve()
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        paths[split] = str(path)
    kwargs: dict[str, Any] = {"data_files": paths, **({"cache_dir": str(cache)} if cache else {})}
    fields: dict[str, Any] = {"include": _own_file(form.include.format(part=part))} if form.include else {}
    fields |= {"task": name, "dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test"}
    fields["process_docs"] = Function("coterie.eval.harness_forms.documents")
    if "dev" in splits:
        fields |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    _dump(folder / f"{name}.yaml", {**fields, **form.fields, **(form.of_part(part) if form.of_part else {})})
    return name


def _own_file(path: str) -> str:
    """A task file of the harness's; where it has none for a part, its YAML says which file is missing."""
    import lm_eval

    return str(Path(lm_eval.__file__).parent / "tasks" / path)


def _group(task: str, form: Form, names: list[str]) -> dict[str, Any]:
    """A task of tasks: the mean over all rows, whatever part they are of."""
    means = [{"metric": name, "aggregation": "mean", "weight_by_size": True} for name in form.metric_names]
    return {"group": f"coterie_{task}", "task": names, "aggregate_metric_list": means}


def _dump(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text("".join(f"{key}: {_yaml(value)}\n" for key, value in fields.items()), "utf-8")


def _yaml(value: Any) -> str:
    """A value on one line: as JSON, which YAML takes in, with functions by their tag."""
    if isinstance(value, Function):
        return f"!function {value.name}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
