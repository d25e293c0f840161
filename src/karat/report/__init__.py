"""The report: what was scored, kept and dropped, as one self-contained page."""
