"""`limner play`: a web page to generate images."""
