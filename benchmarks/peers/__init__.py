"""Other job systems, each in its fastest documented configuration and in an environment of its own."""
