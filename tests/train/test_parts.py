import torch
from ranks import meeting, on_ranks
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from coterie.train.parts import as_part_of, laid_out_as, part_of, whole_matrices


def test_a_plain_tensor_is_its_own_part() -> None:
    x, y = torch.ones(3, 2), torch.zeros(3, 2)
    assert part_of(x) is x and as_part_of(x, y) is y and whole_matrices(x, y) is y and laid_out_as(x, y) is y


def divide() -> None:
    with meeting(2, 1) as mesh:
        assert mesh.line is not None
        rows = torch.arange(10.0).view(5, 2)
        divided = distribute_tensor(rows, mesh.line, [Shard(0)])
        part = part_of(divided)
        assert part.tolist() == (rows[:3] if mesh.is_first else rows[3:]).tolist()
        part += 1  # the memory of the tensor itself
        twice = as_part_of(divided, 2 * part)
        assert isinstance(twice, DTensor) and torch.equal(twice.full_tensor(), 2 * (rows + 1))
        whole = whole_matrices(divided, part)
        assert isinstance(whole, DTensor) and whole.placements == (Replicate(),)
        assert torch.equal(part_of(laid_out_as(divided, whole)), part)
        stack = distribute_tensor(torch.arange(12.0).view(3, 2, 2), mesh.line, [Shard(0)])
        kept = whole_matrices(stack, part_of(stack))
        assert isinstance(kept, DTensor) and kept.placements == (Shard(0),), "each matrix is in one place already"


def test_parts_of_rows_and_of_stacks_of_matrices() -> None:
    on_ranks(2, divide)
