"""The node proxy: moves bytes for the pods of one node. Knows nothing of Kubernetes."""
