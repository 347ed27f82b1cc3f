"""`coterie eval --repeat RUN`: a run once more from its run.json, and whether the scores are the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.output import note, print_json
from coterie.errors import DataError, RequestError

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["differences", "repeat_run"]


def repeat_run(path: Path, *, data: Path | None, folder: Path, as_json: bool) -> None:
    """Run it in `folder`, print the table and the verdict; a `DataError` where a score is another."""
    from coterie.cli.eval_run import Asked, run
    from coterie.cli.eval_text import print_report
    from coterie.cli.model_argument import load_with_bar
    from coterie.eval.run_file import read_run

    before = read_run(path)
    if folder.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise RequestError(f"-o {folder} is the run that is repeated, whose answers are there: name another folder")
    asked = _asked(before["arguments"], path, data, Asked)
    lm = load_with_bar(asked.model)
    _check_model(before, lm, path)
    report = run(lm, asked, folder)
    _note_files(before, report.document)
    differing = differences(before["tasks"], dict(report.document["tasks"]))
    if as_json:
        print_json({"same": not differing, "differing": differing, "run": report.document})
    else:
        print_report(report)
        if not differing:
            n = sum(len(task["metrics"]) for task in before["tasks"].values())
            print(f"  the same: all {n} scores are those of {path}.")
    if differing:
        shown = "; ".join(differing[:3]) + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
        raise DataError(f"not the same as {path}: {shown}")


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Every score that is not the same number, as a sentence without an end."""
    found = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            found.append(f"{name} was run {'then' if name in before else 'now'} only")
            continue
        old, new = (_scores(side[name]) for side in (before, after))
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                found.append(f"{name} {' '.join(filter(None, key))} was {old.get(key)}, is {new.get(key)}")
    return found


def _scores(task: Any) -> dict[tuple[str, str], Any]:
    return {(m.get("name", ""), m.get("group", "")): (m.get("value")) for m in task.get("metrics", [])}


def _asked(arguments: dict[str, Any], path: Path, data: Path | None, kind: Any) -> Any:
    expected = {
        "model": str, "tasks": list, "limit": int, "shots": int, "samples": int, "seed": int, "run_code": bool,
        "settings": dict,
    }  # fmt: skip
    for name, wanted in expected.items():
        value = arguments.get(name)
        if not isinstance(value, wanted) and not (value is None and wanted is int):
            raise DataError(f"{path}: {name} of its arguments is {value!r:.60}, expected a {wanted.__name__}")
    kept = {name: arguments[name] for name in expected}
    folder = data or (Path(arguments["data"]) if isinstance(arguments.get("data"), str) else None)
    return kind(**{**kept, "tasks": tuple(map(str, kept["tasks"])), "data": folder})


def _check_model(before: dict[str, Any], lm: "LanguageModel", path: Path) -> None:
    from coterie.eval.fingerprint import fingerprint

    if before["model"].get("fingerprint") != fingerprint(lm):
        raise DataError(f"{lm.name} is not the model that {path} measured: its weights or their format have changed")


def _note_files(before: dict[str, Any], after: Any) -> None:
    for name, file in after["files"].items():
        old = before["files"].get(name)
        if isinstance(old, dict) and old.get("sha256") != file["sha256"]:
            note(f"{name} has changed since")
