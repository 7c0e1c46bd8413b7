"""Data sets and transforms; the registries import the modules that define them."""
