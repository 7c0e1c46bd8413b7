"""Hooks. Importing this package registers them."""
