"""What people really bring: a table of situations, each built by the libraries that users have, run and compared."""
