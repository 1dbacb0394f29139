"""What a loader reads from, beside records: arrays, windows, patches, mixtures."""
