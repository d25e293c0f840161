"""Asking a model that someone else serves, through its OpenAI-compatible HTTP interface."""
