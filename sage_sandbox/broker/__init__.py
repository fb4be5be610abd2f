"""The one process of a run that holds credentials and talks to tool servers, and how others reach it."""
