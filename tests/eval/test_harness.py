"""coterie in the harness's table of models, and the harness's command line with it."""

import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from coterie.errors import ResourceError
from coterie.eval.harness import register

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_registering_twice_does_no_harm() -> None:
    from lm_eval.api.registry import get_model

    register()
    register()
    from coterie.eval.harness_model import CoterieLM

    assert get_model("coterie") is CoterieLM


def test_a_missing_harness_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(ResourceError, match=r"pip install 'coterie\[eval\]'"):
        register()


def test_its_help_is_the_harness_s() -> None:
    done = subprocess.run([sys.executable, "-m", "coterie.eval.harness", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "lm-eval" in done.stdout, done.stderr[-500:]
