"""What was done, and on whose word: a log that shows when somebody changed, cut or exchanged it."""
