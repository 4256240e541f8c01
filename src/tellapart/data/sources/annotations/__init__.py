"""Annotation files of labelling programs; one module for each family of formats."""

from tellapart.data.sources.annotations.detection import FORMATS, TITLES, detect, file_format
from tellapart.data.sources.annotations.reading import read_annotations

__all__ = ["FORMATS", "TITLES", "detect", "file_format", "read_annotations"]
