"""Programs built on the core; nothing below imports them."""
