"""A rank of a cluster without the cluster: a device without memory, a world without other ranks."""
