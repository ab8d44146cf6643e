"""How things are measured here: programs, peers, rounds, and what is said of them."""
