"""``python -m lit_prune report``: many runs in one table and on one page, compared fairly.

Run folders are found and read (``collect``, ``runs``); equal but for the seed, they are one method
at one rate (``names``, ``groups``); which of these may be compared follows from their settings
(``phases``, ``setups``); what they come to is written down (``tables``, ``figures``, ``page``).

Examples:
    >>> from lit_prune.report import read_runs, tasks_of
"""

from lit_prune.report.collect import read_runs
from lit_prune.report.command import run
from lit_prune.report.groups import Cell, Task, tasks_of
from lit_prune.report.runs import Run, Status
from lit_prune.report.tables import frame

__all__ = ["Cell", "Run", "Status", "Task", "frame", "read_runs", "run", "tasks_of"]
