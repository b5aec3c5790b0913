"""Pixels: stain statistics, tissue masks, alignment of spots to tissue, and tiles."""
