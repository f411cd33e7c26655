"""Layers with weights that more than one head is made of."""
