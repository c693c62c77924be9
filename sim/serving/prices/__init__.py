"""What the steps of an engine cost: tables made once, and read in loops."""
