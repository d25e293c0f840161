"""Rows: from files, folders, frames and the Hub to one view with stable ids."""
