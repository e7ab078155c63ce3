"""Pillow, told once to read what every viewer shows, without a word on stderr: files are opened with this `Image`."""

import warnings

from PIL import Image, PngImagePlugin

__all__ = ["FORMATS", "Image"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded. Pillow knows more formats, among them some that it hands to other programs (EPS)."""

# Programs that draw pictures note how in texts of megabytes; Pillow refuses files with more than one in a text. All
# texts of a file together stay bounded, to 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# Many pixels, but not too many; damaged EXIF data; transparency in a palette: none of it changes the pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")
