"""Training in several processes: strategies, launching, signals, agreement between ranks."""
