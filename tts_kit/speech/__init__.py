"""Adapter -> audio."""
