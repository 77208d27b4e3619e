"""The lifecycle of one call, for sync and async callers.

open → (guard.admit) → the SDK sends → read each response or chunk → end: normalise, price, record, sinks, settle.
The capture package calls it. Prices, spans, sinks and the guard are passed in by the composition root.
"""
