"""How good raw scores are: `ranking` for whole pictures, `regions` for pixels and regions."""
