"""Pure functions over tensors, without weights: what all heads are made of."""
