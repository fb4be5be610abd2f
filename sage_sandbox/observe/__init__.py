"""Listeners to a run: they see every event and can stop nothing."""
