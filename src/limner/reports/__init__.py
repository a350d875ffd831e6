"""Pages for people: of a run, of an evaluation, of a data check."""
