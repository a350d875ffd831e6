"""`limner prepare`: a data set written in another format."""
