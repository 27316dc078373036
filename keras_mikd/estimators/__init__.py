"""Mutual-information estimator layers."""
