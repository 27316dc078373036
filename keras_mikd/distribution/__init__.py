"""Replicas, hosts and workers."""
