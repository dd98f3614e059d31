"""Backbones of acmix-mm."""
