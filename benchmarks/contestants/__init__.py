"""Who takes part: each in an environment of its own, driven by one program."""
