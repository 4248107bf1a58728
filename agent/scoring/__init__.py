"""Downstream accuracy of trained models through lm-evaluation-harness, in an interpreter that has it."""
