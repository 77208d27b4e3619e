"""What `otel-tokens run` needs around the program it starts."""
