"""The dashboard: pages, JSON and a stream of what happens, read from the store of a run."""
