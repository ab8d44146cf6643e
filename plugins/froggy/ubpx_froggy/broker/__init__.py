"""The side that traces."""
