"""Routers, their losses, and the plain data they return."""

from coterie.routing.assignment import Assignment, Rows
from coterie.routing.topk import TopKRouter

__all__ = ["Assignment", "Rows", "TopKRouter"]
