"""Regions of images as files: the region format, and what others publish. Nothing here needs torch to be imported."""
