"""A loss or a gradient that is not a number: the run stops before it spoils a weight, and says which batch it was."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.checkpoint.atomic import disk_errors, new_file
from coterie.errors import CoterieError

__all__ = ["not_finite", "write_bad_batch"]


def write_bad_batch(path: Path, record: dict[str, Any], rows: list[dict[str, Any]], ids_BS: Tensor) -> None:
    """What was measured in the step, where the rows of its batch come from, and their ids, as JSON."""
    measured = {k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    with disk_errors(path), new_file(path) as file:
        file.write(json.dumps(measured | {"rows": rows, "ids": ids_BS.tolist()}).encode())


def not_finite(record: dict[str, Any], rows: list[dict[str, Any]], path: Path, lr: float) -> CoterieError:
    """The sentence: what, at which step, in which batch, and what to do. `path` has the batch, `lr` is the recipe's."""
    what = "the gradient's norm is not finite" if math.isfinite(record["loss"]) else f"the loss is {record['loss']}"
    files = ", ".join(f"{n} of {name}" for name, n in sorted(Counter(row["file"] for row in rows).items()))
    return CoterieError(
        f"step {record['step']}: {what}; it changed no weight; its batch (rows: {files}) is in {path}: look there for "
        f"damaged text, or give the recipe a smaller [train] lr (now {lr:g}), a longer warmup or a smaller clip; the "
        f"same command then goes on from the last good step; should that be no better, remove the newest folder of "
        f"{path.parent / 'checkpoints'} to go on from the one before"
    )
