"""The model families, one file each and nothing else: the folder is their registry."""
