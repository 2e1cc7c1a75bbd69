"""Where objects come from: a folder of YAML, or the Kubernetes API."""
