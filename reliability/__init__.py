"""Proof under faults: a simulator, and one checker for what it shows."""
