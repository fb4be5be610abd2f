"""What a stranger wrote, read and understood: pure, and nothing but template files are read here."""
