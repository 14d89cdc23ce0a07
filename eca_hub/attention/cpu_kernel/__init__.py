"""ECA on the CPU: a fused C kernel, and the same in torch operations where it was not compiled."""
