"""Numbers to `Usage`: read what a provider said, normalise it, estimate what it did not say."""
