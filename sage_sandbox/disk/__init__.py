"""The files of the user and of the project: opened by one rule, replaced whole, locked, marked."""
