"""Mutual TLS between workloads: handshakes, records, SPIFFE verification and certificates."""
