"""Codes -> adapter."""
