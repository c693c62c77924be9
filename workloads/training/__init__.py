"""Training: forward rows as a tape, what it keeps, and the rows that run backward."""
