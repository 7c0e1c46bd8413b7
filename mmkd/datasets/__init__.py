"""Data sets and transforms. Importing this package registers them."""
