"""What lies between a template's name, or a run that stopped, and a run that is ready."""
