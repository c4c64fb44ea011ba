"""A state in other places than a file, and what follows it: PostgreSQL, memory, the InfluxDB mirror."""
