"""Students for a phone."""
