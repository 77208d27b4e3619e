"""What `otel-tokens doctor` looks at, a file per part of the house."""
