"""A seeded kernel that drives the real coordinator: which thing comes next follows from one integer alone."""
