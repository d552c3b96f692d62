"""Benchmarks of methods against each other: one protocol, many cells (method x step x seed), one table."""
