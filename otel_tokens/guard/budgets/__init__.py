"""Budgets: declarations of limits. No state, no input or output."""
