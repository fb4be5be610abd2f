"""Run a stranger's workflow, every operation in a kernel sandbox of its own."""
