"""What makes a cluster a mesh: node agent, control plane, the local form, the command line."""
