"""What happened: fills from a source to positions. Cannot reach the disk of the state."""
