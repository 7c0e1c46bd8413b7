"""Connectors: a student or teacher feature -> a comparable feature. Importing this package registers them."""
