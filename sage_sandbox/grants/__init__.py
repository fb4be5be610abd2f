"""What the user allows: parsed, held against what a template asks, asked for, remembered."""
