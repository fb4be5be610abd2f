"""What leaves an operation: the one exit, in the worker that ran it."""
