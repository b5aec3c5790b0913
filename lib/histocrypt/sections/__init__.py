"""Sections: one door in, whatever the format (readers, validation, images, checks)."""
