"""One page a recipe and a position, from the code and the committed results."""
