"""What the machine does without sage-sandbox."""
