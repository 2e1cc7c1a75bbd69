"""The proxies of a worker: what becomes of each connection that a pod makes or gets."""
