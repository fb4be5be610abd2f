"""The keyless proxy through which operations reach the hosts they were granted, and the worker's end of it."""
