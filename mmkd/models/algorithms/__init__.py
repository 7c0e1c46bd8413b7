"""Algorithms: one training step. Importing this package registers them."""
