"""Measure fusedstep's Adam beside its peers and beside the machine's memory: ``python -m bench``."""
