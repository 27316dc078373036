"""Distillation of detectors."""
