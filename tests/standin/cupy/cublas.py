"""What thinc imports of CuPy, and does not use in a rehearsal."""
