"""Settings for all tests: strict dtypes, one CPU thread pool, fixtures of real models."""
