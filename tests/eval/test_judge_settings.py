from pathlib import Path

import pytest

from coterie.errors import RequestError
from coterie.eval.judge_settings import NAMES, JudgeSettings


def test_defaults_and_values() -> None:
    plain = JudgeSettings.of({})
    assert plain.judge is None and plain.open_judge() is None and plain.max_tokens == 1024 and plain.pairwise == "judge"
    given = JudgeSettings.of({"judge": "http://x/v1", "judge_retries": "0", "against": "runs/a", "pairwise": "ratings"})
    assert given.judge_retries == 0 and given.against == Path("runs/a") and given.pairwise == "ratings"
    assert set(NAMES) == set(JudgeSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"judge_timeout": "soon"}, "judge_timeout=soon: expected a whole number from 1 to 3600"),
        ({"judge_concurrency": "0"}, "judge_concurrency=0: expected"),
        ({"max_tokens": "-1"}, "max_tokens=-1: expected"),
        ({"pairwise": "coin"}, "pairwise=coin: expected judge or ratings"),
        ({"against": "runs/a"}, "add --judge URL"),
    ],
)
def test_bounds(settings: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        JudgeSettings.of(settings)


def test_a_wrong_url_or_key_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="is not a URL of a judge"):
        JudgeSettings.of({"judge": "localhost", "judge_model": "m"}).open_judge()
    monkeypatch.setenv("COTERIE_JUDGE_KEY", "sk-\x07secret")
    with pytest.raises(RequestError, match="COTERIE_JUDGE_KEY") as e:
        JudgeSettings.of({"judge": "http://127.0.0.1:1/v1", "judge_model": "m"}).open_judge()
    assert "secret" not in str(e.value)
