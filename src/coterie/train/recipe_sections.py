"""A recipe as values: one frozen dataclass per section, with what each key is and its default."""

from dataclasses import dataclass, field
from typing import Any

from coterie.router_config import RouterConfig
from coterie.train.recipe_init import Init
from coterie.train.recipe_values import (
    FILES,
    FOLDER,
    NUMBER,
    NUMBERS,
    SEQUENCE,
    TEXT,
    TOKENIZER,
    TWO_NUMBERS,
    WHOLE,
    YES_NO,
)
from coterie.train.recipe_values import key as _key

__all__ = ["Balance", "Data", "Parallel", "Recipe", "Run", "Train"]


@dataclass(frozen=True, kw_only=True)
class Data:
    files: tuple[str, ...] = _key(FILES)  # files of text, or folders of them (train/texts.py)
    weights: tuple[float, ...] = _key(NUMBERS, ())  # how often each entry is drawn from; empty: by its tokens
    valid: tuple[str, ...] = _key(FILES, ())
    documents: str = _key(TEXT, "packed")  # or "masked": none looks into another one of its row
    tokenizer: str | dict[str, int] = field(  # a folder, or one to train; "": that of the model in [init]
        default_factory=lambda: {"vocab_size": 8192}, metadata={"kind": TOKENIZER}
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int = _key(WHOLE)
    batch: int = _key(WHOLE, 16)  # sequences in a step at the first sequence length; a step's tokens stay the same
    sequence: int | tuple[tuple[float, int], ...] = _key(SEQUENCE, 512)  # or [[0.0, 512], [0.85, 2048]]: from when on
    accumulate: int = _key(WHOLE, 1)  # micro-batches a step is cut into
    dtype: str = _key(TEXT, "auto")
    seed: int = _key(WHOLE, 0)
    optimizer: str = _key(TEXT, "adamw")
    lr: float = _key(NUMBER, 1e-3)
    betas: tuple[float, float] = _key(TWO_NUMBERS, (0.9, 0.95))
    warmup: int = _key(WHOLE, 100)
    schedule: str = _key(TEXT, "linear")
    decay: float = _key(NUMBER, 0.2)  # share of the steps in which the schedule "wsd" falls
    recompute: bool = _key(YES_NO, False)  # keep only the input of each block and compute the rest again: less memory
    weight_decay: float = _key(NUMBER, 0.1)
    clip: float = _key(NUMBER, 1.0)


@dataclass(frozen=True, kw_only=True)
class Balance:
    scope: str = _key(TEXT, "global")  # what is to be even: each sequence, each micro-batch, or the whole step
    load: float = _key(NUMBER, 0.01)  # weighs the load-balancing loss
    convention: str = _key(TEXT, "coterie")  # of the stack that `load` is given for
    z: float = _key(NUMBER, 0.001)
    importance: float = _key(NUMBER, 0.0)  # both of arXiv 1701.06538; the second needs the router noisy_topk
    noisy_load: float = _key(NUMBER, 0.0)
    bias: float = _key(NUMBER, 0.0)  # step of the balancing bias at each update; the router sigmoid_bias alone


@dataclass(frozen=True, kw_only=True)
class Parallel:
    data: int = _key(WHOLE, 0)  # data x expert is the number of ranks; 0: what expert leaves of them
    expert: int = _key(WHOLE, 1)  # among how many ranks the experts of a layer are divided


@dataclass(frozen=True, kw_only=True)
class Run:
    out: str = _key(FOLDER, "runs/out")
    eval_every: int = _key(WHOLE, 500)
    save_every: int = _key(WHOLE, 200)
    tensorboard: bool = _key(YES_NO, False)  # the numbers of log.jsonl also for TensorBoard, in OUT/tensorboard


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: dict[str, Any]
    data: Data
    train: Train
    init: Init = field(default_factory=Init)
    router: RouterConfig = field(default_factory=RouterConfig)
    balance: Balance = Balance()
    parallel: Parallel = Parallel()
    run: Run = Run()

    def sequence_plan(self) -> list[tuple[int, int]]:
        """[(first step, sequence length), ...] of the run."""
        t = self.train
        phases = ((0.0, t.sequence),) if isinstance(t.sequence, int) else t.sequence
        return [(round(start * t.steps), length) for start, length in phases]

    def rows_of_micro_batches(self) -> list[int]:
        """How many sequences a micro-batch has, for each phase of the plan."""
        t, plan = self.train, self.sequence_plan()
        return [t.batch * plan[0][1] // length // t.accumulate for _, length in plan]
