"""Pure functions over tensors, without weights, that the heads share."""
