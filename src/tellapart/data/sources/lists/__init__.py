"""Lists of images: their files, their columns, and the images that their rows refer to."""
