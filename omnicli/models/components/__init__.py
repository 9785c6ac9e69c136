"""What families are made of: towers, weights, what relatives share."""
