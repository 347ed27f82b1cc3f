"""What the routes of one running server share. Each module of routes exports `routes(state)`."""

from dataclasses import dataclass, field
from typing import Any

from coterie.server.keys import Keys
from coterie.server.models import Models
from coterie.server.routing_answer import Shelf
from coterie.server.settings import Settings

__all__ = ["State"]


@dataclass
class State:
    """`n_in_flight` counts requests that a shutdown waits for; `metrics` is None in tests that measure nothing."""

    models: Models
    settings: Settings
    keys: Keys
    metrics: Any = None
    shelf: Shelf = field(default_factory=Shelf)  # routing of recent answers
    is_draining: bool = field(default=False)
    n_in_flight: int = field(default=0)
