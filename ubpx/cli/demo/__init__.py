"""``ubpx demo``: two clients on one probepoint of a running program."""
