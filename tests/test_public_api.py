"""The contract others script against: names, signatures, and what `import coterie` costs."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import coterie
from coterie.errors import CoterieError

SOURCE = Path(coterie.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages([str(SOURCE)], "coterie.") if not m.name.endswith("__main__")]
SAMPLING = {
    "max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": None, "stop": None, "stop_token_ids": None,
    "seed": None, "n": 1, "logprobs": None, "routing": False,
}  # fmt: skip


def test_all_is_the_sorted_public_names() -> None:
    assert coterie.__all__ == sorted(coterie.__all__)
    assert set(coterie.__all__) == {
        "Completion", "Delta", "LanguageModel", "ModelConfig", "RouterConfig", "RoutingTrace", "load",
        "CoterieError", *(error.__name__ for error in all_errors(CoterieError)),
    }  # fmt: skip
    for name in coterie.__all__:
        assert getattr(coterie, name) is not None and name in dir(coterie)
    with pytest.raises(AttributeError, match="nothing"):
        _ = coterie.nothing  # type: ignore[attr-defined]


def all_errors(root: type[CoterieError]) -> list[type[CoterieError]]:
    return [
        e
        for child in root.__subclasses__()
        if child.__module__ == "coterie.errors"
        for e in [child, *all_errors(child)]
    ]


def test_import_is_light() -> None:
    light = "coterie, coterie.config, coterie.sizes, coterie.device, coterie.errors, coterie.cli.main"
    code = f"import sys, {light}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip(), f"{name} has no docstring"
    defines = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == name and k != "__getattr__"]
    public = getattr(module, "__all__", None)
    assert public is not None or not defines, f"{name} has no __all__"
    for entry in public or []:
        assert hasattr(module, entry), f"{name}.__all__ names {entry}, which is not there"
        assert not entry.startswith("_")


def test_what_modules_take_from_each_other_is_public() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coterie."):
                module = importlib.import_module(node.module or "")
                public = getattr(module, "__all__", [])
                for alias in node.names:
                    if alias.name not in public and f"{node.module}.{alias.name}" not in MODULES:
                        wrong.append(
                            f"{path.name}, line {node.lineno}: {node.module}.{alias.name} is not in its __all__"
                        )
    assert wrong == []


def parameters(function: object) -> dict[str, object]:
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}  # type: ignore[arg-type]


def test_signature_of_load() -> None:
    assert parameters(coterie.load) == {"source": None, "device": "auto", "dtype": "auto", "quantize": None}
    kinds = [p.kind.name for p in inspect.signature(coterie.load).parameters.values()]
    assert kinds == ["POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY", "KEYWORD_ONLY", "KEYWORD_ONLY"]


def test_signature_of_generate() -> None:
    signature = parameters(coterie.LanguageModel.generate)
    assert list(signature)[:2] == ["self", "prompt"]
    assert {k: v for k, v in signature.items() if k not in ("self", "prompt")} == SAMPLING
    parts = inspect.signature(coterie.LanguageModel.generate).parameters
    assert all(parts[name].kind.name == "KEYWORD_ONLY" for name in SAMPLING)


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("logits", ["ids"]),
        ("generate_many", ["prompts"]),
        ("chat", ["messages"]),
        ("stream", ["prompt_or_messages"]),
        ("score", ["context", "continuations"]),
        ("route", ["text_or_ids"]),
    ],
)
def test_the_other_methods_take_what_the_contract_says(method: str, first: list[str]) -> None:
    names = list(parameters(getattr(coterie.LanguageModel, method)))
    assert names[1 : 1 + len(first)] == first


def test_a_model_has_its_configuration_and_tokenizer() -> None:
    assert isinstance(coterie.LanguageModel.config, property) and isinstance(coterie.LanguageModel.tokenizer, property)
