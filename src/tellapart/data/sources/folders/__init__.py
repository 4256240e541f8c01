"""Folders of images: which folders are splits, which are classes, and which are neither."""
