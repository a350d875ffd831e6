"""HTML reports: of a run, an evaluation, or a data check."""
