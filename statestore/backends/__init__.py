"""Other places for a state than a file, and what follows it: databases and the mirror."""
