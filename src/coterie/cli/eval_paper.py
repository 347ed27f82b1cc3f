"""`coterie eval MODEL --paper` as people read it: figures in a table, both protocols below it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cli.output import note, print_json, print_table, printable

if TYPE_CHECKING:
    from coterie.analysis.section import Section
    from coterie.api import LanguageModel

__all__ = ["print_paper"]

_PROTOCOLS = ("in the paper", "here")


def print_paper(
    lm: "LanguageModel", *, data: Path | None, folder: Path, limit: int | None, seed: int, run_code: bool,
    settings: Mapping[str, str], as_json: bool,
) -> None:  # fmt: skip
    """Measure what there is to measure, write `paper.json` into the folder, and print the tables."""
    from coterie.checkpoint.atomic import disk_errors, new_file
    from coterie.cli.eval_run import bars
    from coterie.eval.paper import Runs, paper

    try:
        with bars() as report:
            sections = paper(Runs(lm, data, limit, seed, folder, run_code, settings, progress=report))
    except KeyboardInterrupt:
        note(f"the answers so far are kept: the same command with -o {folder} goes on")
        raise
    document = {
        "model": lm.name,
        "arguments": {"data": None if data is None else str(data), "limit": limit, "seed": seed, "run_code": run_code},
        "sections": [section.as_json() for section in sections],
    }
    with disk_errors(folder), new_file(folder / "paper.json") as file:
        file.write(json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n")
    if as_json:
        print_json(document)
        return
    for section in sections:
        _print_section(section)
    note(f"{folder / 'paper.json'} has everything; each benchmark's run is in a folder beside it")


def _print_section(section: "Section") -> None:
    from coterie.analysis.section import shown

    kept = [place for place, name in enumerate(section.columns) if name not in _PROTOCOLS]
    print(f"{section.title}\n  {section.sentence}")
    rows = [tuple(printable(shown(row[place])) for place in kept) for row in section.rows]
    print_table([tuple(section.columns[place] for place in kept), *rows])
    if set(_PROTOCOLS) <= set(section.columns):
        theirs, ours = (section.columns.index(name) for name in _PROTOCOLS)
        for row in section.rows:
            if not str(row[ours]).startswith("not run"):  # those are in the sentence
                print(f"  {row[0]}: in the paper {row[theirs]}; here {row[ours]}.")
    print(f"  {section.note}\n")
