"""The states of torch's own random generators as tensors, so that they travel with the other tensors of a run.

Training draws nothing from them: batches and the noise of routers are functions of (seed, step). They are seeded and
kept so that whoever does draw (an evaluation, a layer of one's own) gets the same numbers in every run, resumed or not:
torch itself begins with a seed that is another one in each process.
"""

import torch
from torch import Tensor

from coterie.errors import CheckpointError

__all__ = ["random_states", "restore_random_states", "seed_random_states"]


def seed_random_states(seed: int) -> None:
    """Those of the main processor and of every other device."""
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """`random/cpu`, and the device's own where it has one; uint8."""
    states = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random/cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Take over what `random_states` gave; one that is missing (the run was on another kind of device) stays."""
    try:
        if "random/cpu" in tensors:
            torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], device)
    except (RuntimeError, TypeError) as e:
        raise CheckpointError(f"the random states of the checkpoint do not fit this version of torch ({e})") from None
