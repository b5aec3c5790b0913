"""Wing: predictions as the files that others' programs open, one format a file."""
