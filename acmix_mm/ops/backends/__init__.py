"""Implementations of the operators, one file a backend; registry.py chooses between them."""
