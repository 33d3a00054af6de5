"""Regions of images as files: the region format, and the formats that others publish. Imported without torch."""
