"""What a run leaves and finds again: sealed files, the keys they are sealed with, the order they are written in."""
