"""One file a kind of operation, and what a slot runs to serve them."""
