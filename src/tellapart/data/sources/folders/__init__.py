"""Folders of images: which folder is a split, which a class, and which is neither."""
