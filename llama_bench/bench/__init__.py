"""Measuring without Ray: the schedule of a cell, the timed loop, the accuracy check, and the facts of the machine."""
