"""Files: reading with limits, atomic writes, locks, and fingerprints."""
