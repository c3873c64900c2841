"""Real processes on a real Postgres, and what goes wrong between them."""
