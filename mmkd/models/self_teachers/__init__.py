"""Self-teachers: auxiliary networks grown on the student. Importing this package registers them."""

from . import bifpn, residual_bifpn  # noqa: F401
