"""What metering costs, as ratios in one run."""
