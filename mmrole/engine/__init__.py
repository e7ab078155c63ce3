"""Answers chat requests in batches of prompt trees."""
