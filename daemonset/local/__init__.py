"""A mesh without Kubernetes: nodes and pods as network namespaces on one machine."""
