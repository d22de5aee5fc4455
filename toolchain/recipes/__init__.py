"""Recipes and networks that the package carries."""
