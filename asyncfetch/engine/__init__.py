"""Moving the bytes: connections pull spans, retry, verify, publish, report."""
