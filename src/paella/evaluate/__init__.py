"""Judges of what the models make: metrics, and one file for each thing that is judged."""
