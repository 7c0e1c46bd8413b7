"""Loss modules: weights and reduction around `mmkd.functional`. Importing this package registers them."""
