"""What a config describes as pure functions, and where they run."""
