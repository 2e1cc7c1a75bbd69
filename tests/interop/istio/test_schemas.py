"""Our protobuf schemas beside Istio's: every message, field and enum value of the wire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from tests.support.istio.binaries import find
from ztunnel.proto import authorization_pb2, ca_pb2, workload_pb2, zds_pb2

OURS = (workload_pb2, authorization_pb2, zds_pb2, ca_pb2)


def described(files: Iterable[FileDescriptorProto]) -> dict[str, str]:
    """What decides how bytes are read: "message.number" or "enum.number" -> name and type."""
    found: dict[str, str] = {}
    for file in files:
        for message in file.message_type:
            found.update(_message(f"{file.package}.{message.name}", message))
        for enum in file.enum_type:
            found.update(_enum(f"{file.package}.{enum.name}", enum))
        for service in file.service:
            for method in service.method:
                key = f"{file.package}.{service.name}/{method.name}"
                found[key] = f"{method.input_type} -> {method.output_type}"
    return found


def _message(name: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    for field in message.field:
        yield f"{name}.{field.number}", _field(message, field)
    for inner in message.nested_type:
        yield from _message(f"{name}.{inner.name}", inner)
    for enum in message.enum_type:
        yield from _enum(f"{name}.{enum.name}", enum)


def _field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
    label = FieldDescriptorProto.Label.Name(field.label)
    where = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    name = field.name.replace("_", "").lower()  # serviceAccount or service_account
    return f"{label} {kind} {name} {where}".strip()


def _enum(name: str, enum: EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    for value in enum.value:
        yield f"{name}.{value.number}", value.name


def test_istios_schemas_are_ours() -> None:
    done = subprocess.run([find("istio-peer"), "schemas"], capture_output=True, check=True)
    theirs = described(FileDescriptorSet.FromString(done.stdout).file)
    files = []
    for module in OURS:
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    assert described(files) == theirs
