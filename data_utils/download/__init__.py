"""Fetches MMRole's data set, the COCO images that it needs and the weights: `python -m data_utils.download --help`."""
