"""Speed as ratios, measured in one process; each module prints a table."""
