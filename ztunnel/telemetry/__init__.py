"""What can be seen of the mesh: metrics, access log, and the admin and readiness servers.

Workers fill :class:`~ztunnel.telemetry.record.ConnectionRecord` and count into
:class:`~ztunnel.telemetry.counters.Counters`; the control process collects, renders and serves.
Modules are imported by name, so that a worker loads nothing that only the control process needs.
"""
