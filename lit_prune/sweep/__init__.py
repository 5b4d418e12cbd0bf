"""``python -m lit_prune sweep``: many runs from one file, each in a folder named by its settings.

A file is expanded into trials (``description``, ``trials``), jobs of submitit pull them one by one
(``crew``, ``worker``), and what became of them is read from the sweep's folder (``ledger``), shown
while it lasts (``board``) and summed up at the end (``results``).
"""

from lit_prune.sweep.command import run

__all__ = ["run"]
