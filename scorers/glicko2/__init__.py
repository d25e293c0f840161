"""Glicko-2: ratings of subjects and items from games between them, period by period."""
