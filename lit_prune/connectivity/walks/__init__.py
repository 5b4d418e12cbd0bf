"""Walks: random paths of connections from end to end of a network, many at once."""

from lit_prune.connectivity.walks.choices import Table
from lit_prune.connectivity.walks.passages import Visits
from lit_prune.connectivity.walks.walker import Walker

__all__ = ["Table", "Visits", "Walker"]
