"""Build networks with attention from a name or a configuration."""
