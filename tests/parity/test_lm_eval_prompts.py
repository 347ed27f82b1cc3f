"""Prompts of tasks whose answers are written: ours are those of lm-evaluation-harness, without shots."""

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from coterie.eval.harness_generation import GENERATION
from coterie.eval.harness_tasks import write_tasks
from coterie.eval.registry import TASKS, make
from coterie.eval.rows import Files
from coterie.eval.task import Context, Generate, Task

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

N_ROWS = 4


@pytest.mark.parametrize("name", sorted(GENERATION))
def test_prompts_are_the_harness_s(name: str, data_dir: Path, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    files = Files(data_dir)
    if name not in TASKS:
        pytest.skip(f"no task {name}")
    task = make(name, Context(files, shots=0))
    assert isinstance(task, Task)
    asks = [ask for item in task.items(files.rows(name).rows, shots=0, seed=0) for ask in item.asks]
    ours = {ask.prompt: ask for ask in asks if isinstance(ask, Generate)}
    write_tasks(tmp_path, files, [name], limit=N_ROWS, cache=tmp_path / "cache")
    loaded = TaskManager(include_path=str(tmp_path), include_defaults=False).load([f"coterie_{name}"])
    n = 0
    for theirs in loaded["tasks"].values():
        for doc in theirs.eval_docs:
            prompt = theirs.fewshot_context(doc, 0)
            assert prompt in ours, prompt[-400:]
            n += 1
    assert n == N_ROWS
