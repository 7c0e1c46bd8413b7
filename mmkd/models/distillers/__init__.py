"""Distillers: which records meet in which loss. Importing this package registers them."""
