"""Small tools that know nothing of films and models."""
