"""Training: a LightningModule, the data it learns from, and what a run leaves behind."""
