"""Where tensors are read inside a network, and how they are brought to one grid."""
