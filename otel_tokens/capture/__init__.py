"""How a call is intercepted: patching, the two drivers, streams. Knows wrapt, knows no provider."""
