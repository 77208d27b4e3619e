"""What the subcommands of `otel-tokens budget` share."""
