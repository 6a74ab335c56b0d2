"""Tests that need a GPU: pytest -m gpu. check.py beside them builds and runs everything by one command."""
