"""Judges of what the models make: metrics, and one file per experiment."""
