"""Benchmarks: our mesh, its peers and no mesh at all, alternating in one run. See README.md."""
