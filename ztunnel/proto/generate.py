"""Regenerates the `_pb2` modules of this folder from its .proto files.

Run it after changing a .proto file: `python -m ztunnel.proto.generate`.
It needs the `dev` extra (grpcio-tools); the generated modules are kept in git
so that users need no compiler.
"""

from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def main() -> None:
    """Writes `*_pb2.py` and `*_pb2.pyi` beside each .proto, and the CA's gRPC stub."""
    well_known = str(resources.files("grpc_tools") / "_proto")
    for source in sorted(HERE.glob("*.proto")):
        arguments = [
            "protoc",
            f"-I{ROOT}",
            f"-I{well_known}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
        ]
        if "\nservice " in source.read_text():
            arguments.append(f"--grpc_python_out={ROOT}")
        arguments.append(str(source.relative_to(ROOT)))
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed on {source.name}")


if __name__ == "__main__":
    main()
