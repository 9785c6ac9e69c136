"""The commands, one file each and nothing else: the folder is their registry."""
