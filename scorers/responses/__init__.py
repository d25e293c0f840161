"""Graded responses: who answered which item, and how well; one table for every method that reads them."""
