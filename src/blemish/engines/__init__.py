"""What runs a detector's arithmetic: PyTorch, or an exported graph in an engine without it."""
