"""Which operations need not run again: outcomes kept by the content of all that could have made them different."""
