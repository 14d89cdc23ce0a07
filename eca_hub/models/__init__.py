"""Networks: where attention enters a backbone, and how a configuration becomes a module."""
