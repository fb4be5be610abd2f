"""One operation in a kernel sandbox of its own: decided outside, applied inside, watched until it is gone."""
