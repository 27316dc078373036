"""What a teacher said, kept for many epochs."""
