"""Keras models that take a distillation step."""
