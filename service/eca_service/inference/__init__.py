"""From a request's images to scores: decode, batch, run the engine."""
