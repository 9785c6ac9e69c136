"""``omni report``: answers that were written as JSON, as one HTML file that needs nothing else.

`rows` reads and checks them, `page` writes the page with the graphics of `draw`, `thumbs` cuts pictures out of the
films that are still there, `repeat` tells how to ask again. Nothing here imports torch.
"""
