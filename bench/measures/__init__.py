"""What is measured of ubpx, with what is demanded of it: each module has ``measure(settings)``, which gives figures."""
