"""A module imports only from lower layers or its own package, and no two modules import each other.

Reads the source with `ast`: imports inside functions count too, and so do relative ones and those for type checkers.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
LAYERS = [
    {"errors"},
    {"router_config"},
    {"config"},
    {"sizes", "device"},
    {"kernels", "tokenizer"},
    {"routing"},
    {"model", "quant"},
    {"checkpoint"},
    {"offload", "train", "analysis"},
    {"engine", "tune"},
    {"api"},
    {"server", "eval", "bench"},
    {"cli"},
    {"__init__", "__main__"},  # the package's own front; nothing below imports more of it than `__version__`
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


class Import(NamedTuple):
    importer: str  # "coterie.model.moe"; a package's __init__ by the package's name
    imported: str
    line: int
    is_at_import: bool  # runs when the importer is imported: neither in a function nor for type checkers only


def read_sources(root: Path) -> dict[str, str]:
    """Source by module name, `__init__` kept as the last part."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted((root / "coterie").rglob("*.py"))
    }


def find_imports(sources: dict[str, str]) -> list[Import]:
    """Every import of one coterie module by another; `from coterie.x import y` is x.y where that is a module."""
    modules = {name.removesuffix(".__init__") for name in sources}
    found = []
    for name, source in sources.items():
        importer = name.removesuffix(".__init__")
        package = importer if name.endswith("__init__") else importer.rpartition(".")[0]
        for node, is_at_import in _import_nodes(ast.parse(source), True):
            for target in _targets(node, package, modules):
                found.append(Import(importer, target, node.lineno, is_at_import))
    return found


def _import_nodes(node: ast.AST, is_at_import: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, is_at_import
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _import_nodes(child, False)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for inner in child.body:
                yield from _import_nodes(ast.Module([inner], []), False)
            for inner in child.orelse:
                yield from _import_nodes(ast.Module([inner], []), is_at_import)
        else:
            yield from _import_nodes(child, is_at_import)


def _targets(node: ast.Import | ast.ImportFrom, package: str, modules: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        yield from (name for name in names if name.split(".")[0] == "coterie")
        return
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    if base.split(".")[0] != "coterie":
        return
    for alias in node.names:
        if f"{base}.{alias.name}" in modules:
            yield f"{base}.{alias.name}"
        elif not (base == "coterie" and alias.name == "__version__"):
            yield base


def part_of(module: str) -> str:
    """`coterie.model.moe` -> `model`; the root is `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def upward_imports(imports: list[Import]) -> list[str]:
    """A sentence for each import of a higher layer, a sibling, or a part that has no layer."""
    wrong = []
    for i in imports:
        importer, imported = part_of(i.importer), part_of(i.imported)
        if importer == imported:
            continue
        where = f"{i.importer}, line {i.line}, imports {i.imported}"
        unknown = [part for part in (importer, imported) if part not in LEVEL]
        if unknown:
            wrong.append(f"{where}: {unknown[0]} has no layer in this test")
        elif LEVEL[imported] >= LEVEL[importer]:
            wrong.append(f"{where}: {'its sibling' if LEVEL[imported] == LEVEL[importer] else 'a higher layer'}")
    return wrong


def import_cycles(imports: list[Import]) -> list[list[str]]:
    """Circles of modules that import each other while being imported, each from its least name."""
    graph: dict[str, set[str]] = {}
    for i in imports:
        if i.is_at_import and i.importer != i.imported:
            graph.setdefault(i.importer, set()).add(i.imported)
    found, finished = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            least = circle.index(min(circle))
            found.append(circle[least:] + circle[:least])
        elif module not in finished:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            finished.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_no_module_imports_a_higher_layer_or_a_sibling() -> None:
    imports = find_imports(read_sources(SOURCE))
    assert len(imports) > 20
    assert upward_imports(imports) == []


def test_no_modules_import_each_other() -> None:
    assert import_cycles(find_imports(read_sources(SOURCE))) == []


@pytest.mark.parametrize(
    ("importer", "source", "blamed"),
    [
        ("coterie.model.moe", "import coterie.api", "higher"),
        ("coterie.model.moe", "from coterie import api", "higher"),
        ("coterie.model.moe", "from coterie.engine import engine", "higher"),
        ("coterie.model.moe", "from ..api import load", "higher"),
        ("coterie.model.moe", "def f():\n    from coterie.api import load", "higher"),
        ("coterie.model.moe", "if TYPE_CHECKING:\n    from coterie.api import load", "higher"),
        ("coterie.model.moe", "class A:\n def f(self):\n  try:\n   import coterie.cli\n  except E: pass", "higher"),
        ("coterie.model.moe", "from coterie import load", "higher"),
        ("coterie.server.app", "from coterie.eval import harness", "sibling"),
        ("coterie.sizes", "from coterie.device import total_memory", "sibling"),
        ("coterie.newpart.x", "import coterie.errors", "no layer"),
    ],
)  # fmt: skip
def test_the_checker_catches(importer: str, source: str, blamed: str) -> None:
    others = {
        f"coterie.{name}": "" for name in ("api", "engine.engine", "cli.main", "eval.harness", "errors", "device")
    }
    wrong = upward_imports(find_imports({**others, importer: source}))
    assert len(wrong) == 1 and blamed in wrong[0], wrong


def test_the_checker_lets_pass_what_is_below_or_beside_in_the_same_package() -> None:
    source = "import torch\nfrom coterie import __version__\nfrom coterie.errors import E\nfrom .norm import RMSNorm"
    assert (
        upward_imports(find_imports({"coterie.model.moe": source, "coterie.errors": "", "coterie.model.norm": ""}))
        == []
    )


def test_the_checker_finds_circles_but_not_those_broken_by_a_function() -> None:
    circle = {
        "coterie.model.a": "from coterie.model.b import x",
        "coterie.model.b": "from . import c",
        "coterie.model.c": "import coterie.model.a",
    }
    assert import_cycles(find_imports(circle)) == [["coterie.model.a", "coterie.model.b", "coterie.model.c"]]
    broken = circle | {"coterie.model.c": "def f():\n    import coterie.model.a"}
    assert import_cycles(find_imports(broken)) == []
    front = {
        "coterie.model.__init__": "from coterie.model.a import A",
        "coterie.model.a": "from coterie.model import A",
    }
    assert import_cycles(find_imports(front)) == [["coterie.model", "coterie.model.a"]]
