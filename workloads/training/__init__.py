"""Training: the forward rows of a model as a tape, what it keeps, and the rows that run backward."""
