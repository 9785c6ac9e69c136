"""What is known of a family without its code: names, sizes, token arithmetic. No torch, no transformers; for planning.

One file per family, named like it. Its class, named there as ``FACTS``, reads a checkpoint's ``config.json``; the
family's own file takes the same numbers from it.
"""
