"""The state as a file: durable, locked, sealed by a sum, with backups. Knows nothing of fills."""
