"""Teachers with more conditional mutual information."""
