"""Reporting: events, actions at thresholds, refusals in words, forecasts, and changes by hand."""
