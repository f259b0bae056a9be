"""The conventions of the protocol, held by its descriptors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from docs.generate import PROTOS, generate_protos

ROOT = Path(__file__).resolve().parent.parent
UNSIGNED = {
    FieldDescriptorProto.TYPE_UINT32,
    FieldDescriptorProto.TYPE_UINT64,
    FieldDescriptorProto.TYPE_FIXED32,
    FieldDescriptorProto.TYPE_FIXED64,
}
INTEGERS = {FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_INT64}
# Integers that are no counts: numbers of something, lengths in a unit, and names of a place in a series.
INTEGER_SUFFIXES = ("_count", "_bytes", "_nanos", "_id", "_version", "_size", "sequence")
# Repeated fields that hold one series and are named by the unit of its values.
SERIES = {"sample_unix_nanos"}

# Field numbers of FileDescriptorProto and its parts, which make up the paths of comments.
MESSAGE, ENUM, SERVICE, FIELD, NESTED, VALUE, METHOD, ENUM_IN_MESSAGE = 4, 5, 6, 2, 3, 2, 2, 4


@pytest.fixture(scope="module")
def files() -> list[FileDescriptorProto]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set.bin"
        sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
        includes = [f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
        options = ["--include_source_info", f"--descriptor_set_out={target}"]
        assert protoc.main(["protoc", *includes, *options, *sources]) == 0
        found = list(FileDescriptorSet.FromString(target.read_bytes()).file)
    assert len(found) == len(sources) > 0
    return found


def messages(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str, DescriptorProto]]:
    """All messages of a file, nested ones too: (path of its comment, name, message)."""
    pending = [((MESSAGE, index), message.name, message) for index, message in enumerate(file.message_type)]
    while pending:
        path, name, message = pending.pop()
        yield path, name, message
        pending += [
            ((*path, NESTED, index), f"{name}.{nested.name}", nested)
            for index, nested in enumerate(message.nested_type)
        ]


def fields(files: list[FileDescriptorProto]) -> Iterator[tuple[str, FieldDescriptorProto]]:
    for file in files:
        for _, name, message in messages(file):
            for field in message.field:
                yield f"{name}.{field.name}", field


def things_to_comment(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Everything that needs a comment: (path, name)."""
    for path, name, message in messages(file):
        yield path, name
        yield from (((*path, FIELD, i), f"{name}.{field.name}") for i, field in enumerate(message.field))
        for i, enum in enumerate(message.enum_type):
            yield (*path, ENUM_IN_MESSAGE, i), f"{name}.{enum.name}"
    for i, enum in enumerate(file.enum_type):
        yield (ENUM, i), enum.name
        yield from (((ENUM, i, VALUE, j), value.name) for j, value in enumerate(enum.value))
    for i, service in enumerate(file.service):
        yield (SERVICE, i), service.name
        yield from (((SERVICE, i, METHOD, j), f"{service.name}.{m.name}") for j, m in enumerate(service.method))


def test_everything_has_a_comment_that_is_a_sentence(files: list[FileDescriptorProto]) -> None:
    bare = []
    for file in files:
        comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
        bare += [name for path, name in things_to_comment(file) if not comments.get(path, "").endswith(".")]
    assert bare == []


def test_every_enum_begins_with_unspecified_and_its_values_carry_its_name(files: list[FileDescriptorProto]) -> None:
    enums = [enum for file in files for enum in file.enum_type]
    enums += [enum for file in files for _, _, message in messages(file) for enum in message.enum_type]
    assert enums
    for enum in enums:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}UNSPECIFIED", 0)
        assert all(value.name.startswith(prefix) for value in enum.value)


def test_no_integer_is_unsigned(files: list[FileDescriptorProto]) -> None:
    assert [name for name, field in fields(files) if field.type in UNSIGNED] == []


def test_integers_say_by_their_name_what_they_are(files: list[FileDescriptorProto]) -> None:
    vague = [
        name for name, field in fields(files) if field.type in INTEGERS and not field.name.endswith(INTEGER_SUFFIXES)
    ]
    assert vague == []


def test_floating_point_numbers_have_their_unit_in_their_name_or_beside_them(files: list[FileDescriptorProto]) -> None:
    floats = {FieldDescriptorProto.TYPE_DOUBLE, FieldDescriptorProto.TYPE_FLOAT}
    units = ("_m", "_deg", "_ms", "_s", "_seconds", "_days", "_celsius", "_nm", "_ratio")
    bare = [name for name, field in fields(files) if field.type in floats and not field.name.endswith(units)]
    beside = ["Variable.values", "VariableComparison.mean_difference", "VariableComparison.mean_absolute_difference"]
    assert sorted(bare) == sorted(beside)  # their unit is the field `unit`


def test_repeated_fields_are_plural_and_the_others_are_not_named_after_many(files: list[FileDescriptorProto]) -> None:
    repeated = [(name, field) for name, field in fields(files) if field.label == FieldDescriptorProto.LABEL_REPEATED]
    assert repeated
    assert [name for name, field in repeated if not field.name.endswith("s") and field.name not in SERIES] == []


def test_instants_are_timestamps_named_time(files: list[FileDescriptorProto]) -> None:
    stamps = [(name, field) for name, field in fields(files) if field.type_name == ".google.protobuf.Timestamp"]
    assert stamps
    assert [name for name, field in stamps if not field.name.endswith("_time")] == []
    named = [(name, field) for name, field in fields(files) if field.name.endswith("_time")]
    assert [name for name, field in named if field.type_name != ".google.protobuf.Timestamp"] == []


def test_facts_that_are_true_or_false_are_named_as_facts(files: list[FileDescriptorProto]) -> None:
    facts = [(name, field) for name, field in fields(files) if field.type == FieldDescriptorProto.TYPE_BOOL]
    assert [name for name, field in facts if not field.name.startswith(("is_", "has_"))] == []


def test_every_call_has_a_request_and_a_response_of_its_own(files: list[FileDescriptorProto]) -> None:
    calls = [method for file in files for service in file.service for method in service.method]
    used = [name for method in calls for name in (method.input_type, method.output_type)]
    assert len(used) == len(set(used)) > 0
    assert all(method.input_type.endswith("Request") and method.output_type.endswith("Response") for method in calls)


def test_services_are_in_files_of_their_own_and_packages_are_folders(files: list[FileDescriptorProto]) -> None:
    for file in files:
        assert bool(file.service) == file.name.endswith("_service.proto"), file.name
        assert file.package == str(Path(file.name).parent).replace("/", ".")


def test_generating_the_code_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as in make check, where nobody has activated the environment
    names = generate_protos(tmp_path)
    committed = {path.relative_to(ROOT) for path in (ROOT / "fieldpost" / "v1").glob("*_pb2*")}
    assert set(names) == committed
    assert [str(name) for name in names if (tmp_path / name).read_bytes() != (ROOT / name).read_bytes()] == []
