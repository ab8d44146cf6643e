"""The core: probepoints, slots and stops, without a tracing mechanism of its own."""
