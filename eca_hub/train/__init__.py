"""Training: LightningModules, their data, and the results of a run."""
