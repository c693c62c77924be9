"""Command timing of one DRAM channel: a readable twin tick by tick, and a kernel that skips."""
