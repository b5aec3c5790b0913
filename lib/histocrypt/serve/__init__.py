"""``histocrypt serve``: predictions over plain HTTP, for who needs no encryption."""
