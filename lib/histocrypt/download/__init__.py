"""Public data sets, fetched with resumption and checksums into layouts that the readers know."""
