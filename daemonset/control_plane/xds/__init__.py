"""Delta ADS for the workload API: what to send (pure), and the gRPC service that sends it."""
