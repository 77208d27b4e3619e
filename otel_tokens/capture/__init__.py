"""Intercepts calls: patches SDK functions, follows each request and its answer or stream. Knows no provider."""
