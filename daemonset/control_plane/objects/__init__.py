"""Kubernetes and Istio objects, read strictly into frozen dataclasses: one kind per file."""
