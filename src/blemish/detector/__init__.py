"""The life of a detector: fitted, calibrated, predicting, evaluated, refined, kept in a file."""
