"""From settings to a report: a run, its evaluation, grids of runs and their tables."""
