"""Files of a run: the best student, a state to go on from, and what recognizes a network."""
