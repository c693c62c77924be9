"""Links between parts, and the collectives that run over them."""
