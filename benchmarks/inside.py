"""docs/inside.md: what the experts of the shipped model do, on text that it has not seen, as its own commands tell it.

    COTERIE_DATA=... python benchmarks/inside.py            record, report, write the page and its pictures
    COTERIE_DATA=... python benchmarks/inside.py --keep     the page alone, from the report that is there

The page is written whole from report.json: every figure and every comparison with the paper follows from it, so that
another model, or the same one trained longer, gets a page that is true of it (`inside_page.py` has the words).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from inside_page import inside_page, pictures_of

ROOT = Path(__file__).resolve().parent.parent
TEXTS = "text/*.valid.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, help="of each file (default: all)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "inside", help="for the trace and the report")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--keep", action="store_true", help="use the report that is in the folder already")
    args = parser.parse_args()
    if not args.keep:
        data = Path(os.environ.get("COTERIE_DATA", "")) if os.environ.get("COTERIE_DATA") else None
        if data is None:
            sys.exit("inside: set COTERIE_DATA to the folder that has text/")
        make_report(args.model, data, args.folder, args.tokens)
    write_docs(args.folder / "report", args.docs)


def make_report(model: str, data: Path, folder: Path, n_tokens: int | None) -> None:
    """The two commands that the page shows."""
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "inside.trace"
    trace.unlink(missing_ok=True)
    texts = sorted(map(str, data.glob(TEXTS)))
    more = ["--tokens", str(n_tokens)] if n_tokens else []
    coterie("trace", "record", model, *texts, "-o", str(trace), "--guess", *more)
    coterie("trace", "report", str(trace), "-o", str(folder / "report"))


def coterie(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "coterie", *arguments], check=True)


def write_docs(report: Path, docs: Path) -> None:
    """inside.md and the pictures that it shows; pictures of an older page go."""
    docs.mkdir(parents=True, exist_ok=True)
    document = json.loads((report / "report.json").read_text(encoding="utf-8"))
    for old in docs.glob("inside-*.svg"):
        old.unlink()
    for name in pictures_of(document):
        shutil.copyfile(report / f"{name}.svg", docs / f"inside-{name}.svg")
    (docs / "inside.md").write_text(inside_page(document), encoding="utf-8")


if __name__ == "__main__":
    main()
