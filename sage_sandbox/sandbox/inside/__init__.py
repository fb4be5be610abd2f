"""What runs on the far side of a fork: standard library only, single-threaded, and small."""
