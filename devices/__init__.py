"""NICs, virtual functions and how pods get them; knows nothing of CNI or Kubernetes objects."""
