"""`limner play`: drawing on a page in the browser."""
