"""Metrics. Importing this package registers them."""
