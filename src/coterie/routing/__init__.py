"""Routers, their losses, and the plain data they return."""

from coterie.routing.assignment import Assignment, Mixture, Routing, Rows
from coterie.routing.balance import LoadBalance
from coterie.routing.build import build_router
from coterie.routing.edits import ExpertEdits
from coterie.routing.topk import TopKRouter

__all__ = ["Assignment", "ExpertEdits", "LoadBalance", "Mixture", "Routing", "Rows", "TopKRouter", "build_router"]
