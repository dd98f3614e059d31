"""Layers of acmix-mm."""
