"""The node agent: which pods are in the mesh, how their traffic is captured, and who serves them.

It knows pods only as values from a `PodSource`; a folder and the Kubernetes API are two of those.
"""
