"""How fast, how exact, against whom: each module is run as `python -m benchmarks.NAME --json`."""
