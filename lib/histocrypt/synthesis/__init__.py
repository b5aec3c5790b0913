"""Synthetic tissue: real tiles as a manifest, generators, filtering, and what synthetic tiles are good for."""
