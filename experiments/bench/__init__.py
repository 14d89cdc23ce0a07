"""Benchmarks: each prints ratios to a limit and to its peers, measured in the same run."""
