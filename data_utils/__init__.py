"""MMRole-Data on disk: records, prompts, files, images and journals, and the commands that build and check the data."""
