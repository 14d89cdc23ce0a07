"""Which models are served: loading, eviction, following a revision."""
