"""From responses to `Usage`: read the counts, normalise them, estimate what was not reported."""
