"""Where operations run: slots that take an importable callable and may be lost."""
