"""Webhooks: what a provider sent, how it signed it, and who it is for."""
