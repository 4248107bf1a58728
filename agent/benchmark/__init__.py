"""The measuring procedure of serving benchmarks."""
