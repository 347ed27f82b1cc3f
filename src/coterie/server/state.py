"""What the routes of one running server share. Each module of routes exports `routes(state)`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coterie.server.keys import Keys
from coterie.server.models import Models
from coterie.server.routing_answer import Shelf
from coterie.server.settings import Settings

if TYPE_CHECKING:
    from coterie.server.metrics import Metrics

__all__ = ["State"]


@dataclass
class State:
    """`n_in_flight` counts requests that a shutdown waits for; `metrics` is None in tests that measure nothing."""

    models: Models
    settings: Settings
    keys: Keys
    metrics: "Metrics | None" = None
    shelf: Shelf = field(default_factory=Shelf)  # routing of recent answers
    is_draining: bool = field(default=False)
    n_in_flight: int = field(default=0)
