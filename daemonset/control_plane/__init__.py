"""The control plane of a mesh: objects in, workload API and certificates out.

``sources`` reads Kubernetes objects, ``translation`` (pure) turns them into resources of the
workload API and findings, ``xds`` serves those as delta ADS, ``ca`` signs certificates,
``server`` puts them together.
"""
