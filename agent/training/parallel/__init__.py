"""A training on several devices of one machine: processes in lockstep, seen as one run."""
