"""Serving engines, each run in a process and an interpreter of its own."""
