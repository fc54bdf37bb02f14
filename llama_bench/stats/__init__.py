"""Statistics, computed when results are read: ratios and intervals, verdicts, and the views that a report reads."""
