"""What is matched between a teacher and a student."""
