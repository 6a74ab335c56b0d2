"""What thinc imports beside CuPy, and does not use in a rehearsal."""
