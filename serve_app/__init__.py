"""What answers: the Ray Serve applications. Depends on `models` only, never on `jobs`."""
