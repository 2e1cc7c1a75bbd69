"""What the mesh knows, and the decisions over it: pure, without input or output.

`state.MeshState` holds workloads, services and policies. `outbound.decide` says where a
connection goes, `inbound.validate` whether a tunnel's target is this pod, and
`authorize.authorize` who may connect. Each answer carries its reason in words.
"""
