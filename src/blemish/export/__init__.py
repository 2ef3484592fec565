"""Fitted detectors as files that run without PyTorch."""
