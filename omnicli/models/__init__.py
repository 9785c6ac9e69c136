"""One file per model family; `loading` finds them. Importing this package loads nothing."""
