"""``ubpx bench``: what a hit costs on this machine, measured in seconds, without peers and without a compiler."""
