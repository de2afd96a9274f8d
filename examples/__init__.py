"""Documents with questions and their answers."""
