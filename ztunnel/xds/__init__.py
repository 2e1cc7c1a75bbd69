"""What this proxy consumes from a control plane: workloads, services and policies over delta ADS,
or from a file. Only the control process imports the client, for it brings grpcio."""
