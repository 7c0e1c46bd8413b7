"""Self-teachers: auxiliary networks grown on the student. Importing this package registers them."""
