"""ECA on the CPU: one fused C kernel, and the same in torch operations where it was not compiled."""
