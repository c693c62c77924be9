"""Cores that multiply ternary weights by reading look-up tables, and what they compete with."""
