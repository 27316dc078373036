"""The losses that the papers compare with."""
