"""The coordinator's end of the slots: starts them, hands them operations, hears what became of those."""
