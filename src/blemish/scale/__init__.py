"""Scoring, and learning, of more than one machine holds: over Ray, and in any engine that hands out
batches of rows."""
