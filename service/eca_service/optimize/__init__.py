"""Make a loaded network fast: precision, layout, fused norms, compilation, threads, with a parity check."""
