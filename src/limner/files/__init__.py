"""Reading with limits, writing whole or not at all, locks, and what a file holds."""
