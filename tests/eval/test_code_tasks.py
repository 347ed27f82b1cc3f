import itertools
import os
import platform
from pathlib import Path

import pytest

from coterie.errors import DataError
from coterie.eval.code_tasks import HumanEval, Mbpp, pass_at
from coterie.eval.rows import Files
from coterie.eval.task import Context, Generate

linux = pytest.mark.skipif(platform.system() != "Linux", reason="code is isolated on Linux alone")
ADD = {
    "task_id": "HumanEval/x",
    "prompt": 'def add(a, b):\n    """Sum."""\n',
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "canonical_solution": "    return a + b\n",
}
TWICE = {
    "task_id": 1,
    "text": "Double it.",
    "code": "def twice(x):\n    return 2 * x",
    "test_list": ["assert twice(2) == 4"],
}


def test_pass_at_k_is_the_share_of_draws_with_one_that_passes() -> None:
    for n, c, k in [(5, 2, 1), (5, 2, 3), (5, 0, 2), (4, 4, 2), (6, 1, 6), (7, 3, 4)]:
        draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at(k, n, c) == pytest.approx(sum(map(max, draws)) / len(draws))
    assert 0 <= pass_at(100, 200, 1) <= 1


@linux
def test_human_eval_counts_programs_that_pass() -> None:
    task = HumanEval(Context(Files(None), samples=4, run_code=True))
    (item,) = task.items([ADD], shots=None, seed=0)
    ask = item.asks[0]
    assert isinstance(ask, Generate) and ask.prompt == ADD["prompt"]
    assert (ask.n, ask.temperature, ask.top_p) == (4, 0.8, 0.95) and ask.stop[0] == "\nclass"
    texts = ["    return a + b", "    return a - b", "    raise SystemExit(0)", "    import os; os._exit(0)"]
    assert task.judge(item, [texts]) == {"pass@1": 0.25, "pass@4": 1.0}
    (section,) = task.sections([])
    assert section.facts == {"passed": 1, "failed": 2, "killed": 1}


@linux
def test_mbpp_runs_all_tests_of_a_row() -> None:
    task = Mbpp()
    (item,) = task.items([TWICE], shots=0, seed=0)
    assert isinstance(item.asks[0], Generate) and str(item.asks[0].prompt).endswith("assert twice(2) == 4\n[BEGIN]\n")
    assert task.judge(item, [[TWICE["code"]]]) == {"pass@1": 1.0}  # type: ignore[list-item]
    assert task.judge(item, [["def twice(x): return 5"]]) == {"pass@1": 0.0}
    assert task.shot(TWICE).endswith("[BEGIN]\ndef twice(x):\n    return 2 * x\n[DONE]\n\n")


@linux
def test_time_is_a_setting() -> None:
    task = Mbpp(Context(Files(None), settings={"seconds": "0.5"}, run_code=True))
    (item,) = task.items([TWICE], shots=0, seed=0)
    assert task.judge(item, [["while True: pass"]]) == {"pass@1": 0.0}
    assert task.sections([])[0].facts == {"timeout": 1}
    assert task.protocol.endswith("in a sandbox, 0.5 seconds each") and Mbpp().protocol.endswith(", 3 seconds each")


def test_mistakes_of_a_row_are_named() -> None:
    with pytest.raises(DataError, match=r"line 2: entry_point is 'a b', expected the name of a function"):
        HumanEval().check({**ADD, "entry_point": "a b"}, "f, line 2")
    with pytest.raises(DataError, match=r"line 2: there is no field 'test'"):
        HumanEval().check({"prompt": "p", "entry_point": "f"}, "f, line 2")
    with pytest.raises(DataError, match="line 2: test_list has 'assert', which is no Python"):
        Mbpp().check({**TWICE, "test_list": ["assert"]}, "f, line 2")
    with pytest.raises(DataError, match="line 2: test_setup_code is 3, expected text"):
        Mbpp().check({**TWICE, "test_setup_code": 3}, "f, line 2")


@linux
@pytest.mark.skipif("COTERIE_DATA" not in os.environ, reason="COTERIE_DATA names no folder")
def test_published_solutions_pass_their_own_tests() -> None:
    files = Files(Path(os.environ["COTERIE_DATA"]))
    every = 1 if os.environ.get("COTERIE_FULL") else 8
    for task, solution in ((HumanEval(), "canonical_solution"), (Mbpp(), "code")):
        if files.find(task.file) is None:
            pytest.skip(f"{task.file} is not in the data folder")
        read = files.rows(task.file)
        for number, row in list(enumerate(read.rows))[::every]:
            task.check(row, read.where(number))
            assert task.score(row[solution], row)["passed"], row["task_id"]
