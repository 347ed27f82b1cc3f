import pytest
import torch

from coterie.errors import CheckpointError
from coterie.train.random_state import random_states, restore_random_states, seed_random_states

CPU = torch.device("cpu")


def test_the_same_numbers_come_again() -> None:
    states = random_states(CPU)
    first = torch.rand(5)
    restore_random_states(states, CPU)
    assert torch.equal(torch.rand(5), first)


def test_a_seed_is_a_state() -> None:
    seed_random_states(3)
    states = random_states(CPU)
    torch.rand(5)
    seed_random_states(3)
    assert torch.equal(random_states(CPU)["random/cpu"], states["random/cpu"])


def test_a_state_of_another_device_is_left_alone_and_nonsense_refused() -> None:
    restore_random_states({"random/cuda": torch.zeros(16, dtype=torch.uint8)}, CPU)
    with pytest.raises(CheckpointError, match="random states"):
        restore_random_states({"random/cpu": torch.zeros(3, dtype=torch.uint8)}, CPU)
    with pytest.raises(CheckpointError, match="random states"):
        restore_random_states({"random/cpu": torch.zeros(3)}, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_gpu_has_its_own() -> None:
    device = torch.device("cuda")
    states = random_states(device)
    first = torch.rand(5, device=device)
    restore_random_states(states, device)
    assert torch.equal(torch.rand(5, device=device), first)
