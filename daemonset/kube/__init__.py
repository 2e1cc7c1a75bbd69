"""The Kubernetes API: a small client on trio, list-and-watch, and leader election."""
