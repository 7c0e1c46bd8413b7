"""Self-teachers: auxiliary networks grown on the student. Importing this package registers them."""

from . import bifpn  # noqa: F401
