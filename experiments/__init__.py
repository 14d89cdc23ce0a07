"""Runs that can be repeated: configurations, the quickstart and the benches."""
