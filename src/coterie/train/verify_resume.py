"""Does a run that was stopped and gone on with end where one that never stopped ends, bit for bit?

The same training twice: N steps at a stretch, and N/2 steps, a new start from the checkpoint, the rest. Then every
tensor of the last checkpoints is compared (weights, moments, buffers such as a router's bias, states of random
generators), the plain data beside them, and every line of the logs but for the times in it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError
from coterie.train.log import TIMES
from coterie.train.mesh import Mesh
from coterie.train.sharded_state import ShardedCheckpoints

__all__ = ["differences", "verify_resume"]


def verify_resume(train: Callable[[Path, int], None], folder: Path, steps: int) -> list[str]:
    """Every difference, in the order in which it arose; none is what should be.

    `train(run, until)` trains in the folder `run` up to a step and leaves a checkpoint; called again it goes on. It
    should do so in a process of its own, so that nothing but the folder passes from one call to the next.
    """
    straight, resumed, half = folder / "straight", folder / "resumed", steps // 2
    assert half >= 1
    train(straight, steps)
    train(resumed, half)
    train(resumed, steps)
    return list(differences(straight, resumed, half))


def differences(straight: Path, resumed: Path, half: int) -> Iterator[str]:
    """A sentence for each; those before step `half` have nothing to do with resuming, and say so."""
    yield from _log_differences(straight / "log.jsonl", resumed / "log.jsonl", half)
    (tensors_a, meta_a), (tensors_b, meta_b) = _state(straight), _state(resumed)
    for key in sorted(meta_a.keys() | meta_b.keys()):
        if key not in TIMES and meta_a.get(key) != meta_b.get(key):
            yield f"the state's {key!r} is {meta_a.get(key)!r} without a stop and {meta_b.get(key)!r} after resuming"
    for name in sorted(tensors_a.keys() | tensors_b.keys()):
        if name not in tensors_a or name not in tensors_b:
            yield f"the tensor {name!r} is there only {'after resuming' if name in tensors_b else 'without a stop'}"
        elif difference := _tensor_difference(tensors_a[name], tensors_b[name]):
            yield f"the tensor {name!r} differs after resuming: {difference}"


def _state(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = ShardedCheckpoints(run, Mesh.single()).latest()
    if state is None:
        raise CheckpointError(f"{run} holds no checkpoint to compare")
    return state


def _log_differences(straight: Path, resumed: Path, half: int) -> Iterator[str]:
    a, b = (_lines(path) for path in (straight, resumed))
    for step in sorted(a.keys() | b.keys()):
        if step not in a or step not in b:
            yield f"step {step} is logged only {'after resuming' if step in b else 'without a stop'}"
            continue
        for key in sorted(a[step].keys() | b[step].keys()):
            x, y = a[step].get(key), b[step].get(key)
            if key in TIMES or x == y:
                continue
            if step < half:
                yield (
                    f"step {step}: {key} is {x!r} in one run and {y!r} in another of the same seed, before anything "
                    "was resumed: this machine's own arithmetic is not the same twice"
                )
            else:
                yield f"step {step}: {key} is {x!r} without a stop and {y!r} after resuming"


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["step"]: record for record in records}


def _tensor_difference(a: Tensor, b: Tensor) -> str:
    """Empty where both are the same bits; NaN of the same bits is the same."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {list(a.shape)} became {b.dtype} {list(b.shape)}"
    bits_a, bits_b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    if torch.equal(bits_a, bits_b):
        return ""
    n_different = int((bits_a != bits_b).view(-1, a.element_size()).any(1).sum())
    largest = float((a.double() - b.double()).abs().max())
    return f"{n_different:,} of {a.numel():,} numbers, by up to {largest:.3g}"
