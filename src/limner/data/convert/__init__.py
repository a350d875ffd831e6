"""`limner prepare`: convert a data set to another format."""
