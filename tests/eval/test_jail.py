"""What the jail does is under test in test_sandbox.py; here is what it must be for that."""

import ast
import sys
from pathlib import Path

from coterie.eval import jail


def test_it_imports_only_pythons_library_because_it_runs_without_ours() -> None:
    tree = ast.parse(Path(jail.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_a_program_that_raises_has_failed_and_one_that_ends_has_passed() -> None:
    assert jail.run("x = 1") == {"status": "passed", "message": ""}
    assert jail.run("1 / 0") == {"status": "failed", "message": "ZeroDivisionError: division by zero"}
    assert jail.run("raise SystemExit(0)")["status"] == "failed"
