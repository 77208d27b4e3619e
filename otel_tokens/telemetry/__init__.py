"""From records to signals: spans, metrics, and the exporters that carry them out."""
