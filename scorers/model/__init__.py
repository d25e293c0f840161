"""Asking models: which, where, and everything that several scorers want in one pass."""
