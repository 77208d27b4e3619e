"""Meter every LLM call of an application."""
