"""Estimates: which limits a call falls under, and how much of each it may use at most."""
