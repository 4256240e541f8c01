"""Files that hold many images with their labels: Parquet, Hugging Face's saved data sets, WebDataset shards.

What such a file holds is written once into the cache folder, as plain image files and an index; from there on
it is a listing like any other. Formats that are not read are known by name in `unread`. Knows nothing of
splits that the source does not give, and decodes no image.
"""
