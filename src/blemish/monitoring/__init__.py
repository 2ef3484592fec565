"""What to review next, what the reviewed pictures say of the verdicts, and whether what the camera
sees has changed: statistics in numpy alone."""
