"""Conversations, and their page."""
