"""What a version, or a transaction, holds: documents and chunks by key."""
