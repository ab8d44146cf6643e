"""``ubpx trace``: every hit of some places, or how many there were."""
