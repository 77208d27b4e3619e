"""`otel-tokens demo`: a loopback model server that speaks the providers' wire formats, and a workload against it."""
