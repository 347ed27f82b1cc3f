"""lm-evaluation-harness with coterie in it: the model `coterie` registered, and the harness's own command line.

    python -m coterie.eval.harness --model coterie --model_args pretrained=demo --tasks hellaswag --include_path tasks

The harness finds its models in a table and has no plug-ins, so the table must be written to before a model is looked
up: `register` does it, this module's command line does it first, and so do the task files of
`coterie.eval.harness_tasks`, by being read: `lm_eval --model coterie --tasks tasks/hellaswag.yaml` works by itself.
"""

import sys

from coterie.errors import CoterieError, ResourceError

__all__ = ["main", "register"]

_TARGET = "coterie.eval.harness_model:CoterieLM"


def register() -> None:
    """Make `coterie` a model of the harness; more than once does no harm. `ResourceError` where lm-eval is missing."""
    try:
        import lm_eval.models  # noqa: F401  # fills the table with the harness's own
        from lm_eval.api.registry import model_registry
    except ModuleNotFoundError as e:
        raise ResourceError(f"lm-evaluation-harness is not installed ({e.name}): pip install 'coterie[eval]'") from None
    if "coterie" not in model_registry:
        model_registry.register("coterie", target=_TARGET)


def main() -> int:
    """`lm_eval` with the process's arguments and coterie among the models; 2 after a mistake of the user's."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except CoterieError as e:
        print(f"coterie: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
