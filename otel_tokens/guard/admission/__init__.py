"""Admission: decide before a call is sent, and reserve what it may use."""
