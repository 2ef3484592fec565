"""What `benchmarks/robustness.py` and `tests/test_fuzz.py` try blemish with, all drawn from a seed.

`pictures`: pictures of every format; `damage`: what may befall their files. `artifacts`: detectors
of every method, with a manifest or tensors that no `blemish fit` has written. `texts`: tables,
settings, rows and predictions. `forks`: attempts in processes of their own, which may crash, hang
or be killed. `commands`: whole commands, killed, interrupted, out of room, or two at once;
`places`: what is no file, and names that mislead.
"""
