"""Tokens from a streamed model."""
