"""Score networks, and which pairs they score."""
