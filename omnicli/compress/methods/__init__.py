"""The compression methods, one file each and nothing else: the folder is their registry."""
