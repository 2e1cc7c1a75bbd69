"""Pure: objects of a mesh -> resources of the workload API, and findings about the objects."""
