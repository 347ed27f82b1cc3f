"""What to expect of a model that memory does not hold: said before it is loaded, since it works and is slow.

Its weights stay in the file and are read when a token needs them. Worked example: 26.3 GB at 4.5 bits a weight, of
which a token uses 7.2 GB; of those the part that memory cannot keep comes from the disk each time.
"""

from coterie.checkpoint.numbers import size_text
from coterie.checkpoint.opened import Checkpoint
from coterie.device import available_memory
from coterie.sizes import active_parameters, parameters

__all__ = ["RESERVE", "bytes_per_token", "what_to_expect"]

RESERVE = 1 << 30  # bytes that are kept free beside the weights: the cache, temporaries, other programs


def bytes_per_token(checkpoint: Checkpoint) -> int:
    """Bytes of weights that one token reads: all but the embedding and the experts that were not chosen."""
    total, active = parameters(checkpoint.config), active_parameters(checkpoint.config)
    n_stored = total.total - (0 if total.head else total.embedding)
    n_read = active.total - active.embedding if total.head else active.total - active.embedding + total.embedding
    return int(checkpoint.nbytes * min(1.0, n_read / max(1, n_stored)))


def what_to_expect(checkpoint: Checkpoint) -> str | None:
    """A sentence where the weights and `RESERVE` are more than the memory that is free; else None."""
    there = available_memory("cpu")
    if checkpoint.nbytes + RESERVE <= there:
        return None
    per_token = bytes_per_token(checkpoint)
    from_disk = per_token * max(0.0, 1 - max(0, there - RESERVE) / checkpoint.nbytes)
    slow, fast = (max(from_disk / speed, per_token / 20e9) for speed in (0.5e9, 3e9))
    return (
        f"{checkpoint.path} has {size_text(checkpoint.nbytes)} of weights and {size_text(there)} of memory are free: "
        f"they stay in the file and are read as they are needed. A token uses {size_text(per_token)} of them, about "
        f"{size_text(int(from_disk))} from the disk: expect {fast:.1f} to {slow:.1f} seconds a token, by the disk"
    )
