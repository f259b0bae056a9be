"""Writes what is derived from something else: Python code from protos/, and the settings and --help in the docs.

    python -m docs.generate [protos|docs] [--check]

With --check nothing is written; what would change is named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate_protos(target: Path) -> list[Path]:
    """Generates the Python code of protos/ below target; returns the files' paths relative to it."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in sources if name.endswith("_service.proto")]
    includes = [f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):  # beside this Python, whatever the PATH is
        includes.append(f"--plugin={plugin}={Path(sys.executable).with_name(plugin)}")
    messages_out = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
    services_out = [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
    for outputs, names in ((messages_out, sources), (services_out, services)):
        if protoc.main(["protoc", *includes, *outputs, *names]) != 0:
            sys.exit("protoc failed; its messages stand above")
    return sorted(path.relative_to(target) for path in target.rglob("*_pb2*") if path.is_file())


def check_or_write(fresh: dict[Path, bytes], *, check: bool) -> list[str]:
    """Writes the files that differ, or only names them; returns their names."""
    changed = []
    for path, content in fresh.items():
        if not path.exists() or path.read_bytes() != content:
            changed.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return changed


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["protos", "docs", "all"], default="all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    options = parser.parse_args()
    fresh: dict[Path, bytes] = {}
    if options.what in ("protos", "all"):
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder)
            fresh |= {ROOT / name: (target / name).read_bytes() for name in generate_protos(target)}
        stale = set((ROOT / "fieldpost" / "v1").glob("*_pb2*")) - set(fresh)
        if stale and options.check:
            print("not generated from any file in protos/:", ", ".join(sorted(path.name for path in stale)))
            return 1
        for path in stale:
            path.unlink()
    if options.what in ("docs", "all") and (ROOT / "docs" / "from_code.py").exists():
        from docs.from_code import generate_docs

        fresh |= generate_docs()
    changed = check_or_write(fresh, check=options.check)
    if changed:
        print("out of date (make protos docs):" if options.check else "written:", ", ".join(changed))
    return int(bool(changed and options.check))


if __name__ == "__main__":
    sys.exit(main())
