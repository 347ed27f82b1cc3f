"""Who comes next: which waiting request is taken up, and how many prompt tokens each one reads in a pass.

Owners take turns: the next place goes to the one with the fewest sequences at work, and of those to the one that has
waited longest for a turn; its own requests come in the order of their arrival. A request is taken up only when memory
has room for it beside all that are at work, grown as long as they may become (`memory.py`). So nothing runs out in the
middle; and the one whose turn it is blocks those behind it, or a large one would wait forever.

Prompt tokens of a pass are shared equally between owners, what one leaves going to the others. Half of an owner's share
goes to the shortest of what is unread, so that a short prompt is read at once behind a long one; the other half to the
first, so that no long one waits for ever. Prompts end one after the other, not all at the end.
Example: 8 tokens for one owner's prompts of 10, 1 and 9: 1 and 3 to the shortest two; the first takes the rest: 4, 1, 3
"""

from collections import deque
from collections.abc import Sequence as Items

from coterie.engine.sequence import Sequence

__all__ = ["Waiting", "shares"]


class Waiting:
    """The queues of all owners; each request waits as its sample 0."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Sequence]] = {}  # the owner that was served last comes last
        self.n_requests = self.n_tokens = 0

    def __bool__(self) -> bool:
        return self.n_requests > 0

    def add(self, s: Sequence) -> None:
        self._queues.setdefault(s.request.owner, deque()).append(s)
        self._count(s, 1)

    def next(self, live: Items[Sequence]) -> Sequence:
        """Whose turn it is, among these at work; it stays until it is taken."""
        if len(self._queues) == 1:
            return next(iter(self._queues.values()))[0]
        n_live = dict.fromkeys(self._queues, 0)
        for s in live:
            if s.request.owner in n_live:
                n_live[s.request.owner] += 1 if s.is_prompt_read else s.request.params.n
        return self._queues[min(n_live, key=n_live.__getitem__)][0]

    def take(self, s: Sequence) -> None:
        """It has been taken up: its owner's next turn comes after those of the others."""
        queue = self._queues.pop(s.request.owner)
        assert queue.popleft() is s
        if queue:
            self._queues[s.request.owner] = queue
        self._count(s, -1)

    def cancel(self, number: int) -> None:
        """Forget this request, if it is here."""
        for owner, queue in self._queues.items():
            for s in queue:
                if s.number == number:
                    queue.remove(s)
                    self._count(s, -1)
                    if not queue:
                        del self._queues[owner]
                    return

    def _count(self, s: Sequence, sign: int) -> None:
        self.n_requests += sign
        self.n_tokens += sign * len(s.request.prompt_ids)


def shares(reading: Items[Sequence], room: int) -> list[int]:
    """How many of `room` tokens each of these reads of its prompt."""
    unread = [len(s.request.prompt_ids) - s.n_read for s in reading]
    if len(unread) == 1 or sum(unread) <= room:
        return [min(n, room) for n in unread]
    owners = list(dict.fromkeys(s.request.owner for s in reading))
    places = [[i for i, s in enumerate(reading) if s.request.owner == owner] for owner in owners]
    rooms = _level([sum(unread[i] for i in at) for at in places], room)
    found = [0] * len(unread)
    for at, part in zip(places, rooms, strict=True):
        for i, n in zip(at, _shares_of_owner([unread[i] for i in at], part), strict=True):
            found[i] = n
    return found


def _shares_of_owner(unread: list[int], room: int) -> list[int]:
    found = [0] * len(unread)
    shortest_first = sorted(range(len(unread)), key=unread.__getitem__)
    for order, part in ((shortest_first, room // 2), (range(len(unread)), room - room // 2)):
        left = part
        for i in order:
            n = min(left, unread[i] - found[i])
            found[i] += n
            left -= n
    return found


def _level(needs: list[int], room: int) -> list[int]:
    """As equal as needs allow, all of `room` where they are that large; what does not divide goes to the first."""
    found = [0] * len(needs)
    open_ = [i for i, n in enumerate(needs) if n]
    while room and open_:
        each, extra = divmod(room, len(open_))
        for rank, i in enumerate(open_):
            n = min(needs[i] - found[i], each + (rank < extra))
            found[i] += n
            room -= n
        open_ = [i for i in open_ if found[i] < needs[i]]
    return found
