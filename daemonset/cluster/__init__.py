"""The operator's commands for a Kubernetes cluster: check, status, why, uninstall.

Each is a pure core (objects in, findings or lines out) and a thin shell that lists the objects.
"""
