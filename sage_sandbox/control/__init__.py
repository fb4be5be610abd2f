"""The control socket of a run: other processes of its user ask how it stands, wait for its end, or cancel it."""
