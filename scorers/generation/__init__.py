"""Sampling responses from a model: here with transformers, or through an OpenAI-compatible server."""
