"""A user's model at work: payloads are decoded, prepared and interpreted as its manifest declares, batch or alone."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import (
    CLASSIFIER_MANIFEST,
    PROFILE_MANIFEST,
    floats,
    make_classifier,
    make_image,
    make_model,
    make_profile,
    make_profile_model,
)
from onnx import helper
from PIL import Image

from fieldpost.errors import InvalidObservationError, InvalidRequestError
from fieldpost.v1 import observation_pb2
from server.analyses import AnalysisInput, AnalysisResult
from server.models.answers import interpret
from server.models.manifest import InputDeclaration, read_manifest
from server.models.onnx_analysis import OnnxAnalysis, load_onnx
from server.models.payloads import Preparation
from server.workers.jobs import ModelKey, ModelPackage, WorkItem
from server.workers.worker import finish_in_blocks, prepare_batch


def _load(manifest: str, content: bytes) -> OnnxAnalysis:
    return load_onnx(ModelPackage(ModelKey("some", 7), manifest, content), threads=1, device="cpu")


def _input(payload: bytes, measure_unix_nanos: int = 0) -> AnalysisInput:
    return AnalysisInput(payload, "sky-camera", measure_unix_nanos)


def _sound(answer: AnalysisResult | Exception) -> AnalysisResult:
    assert isinstance(answer, AnalysisResult), answer
    return answer


def test_images_become_classes_with_their_meaning_and_probability() -> None:
    analysis = _load(CLASSIFIER_MANIFEST, make_classifier())
    assert (analysis.name, analysis.version) == ("some", 7)
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    answers = analysis.predict([_input(make_image(each), 5) for each in colours])
    for number, answer in enumerate(map(_sound, answers)):
        kind, probability = answer.variables
        assert (kind.name, kind.flag_meanings, kind.values.tolist()) == (
            "cloud_type",
            ("red", "green", "blue"),
            [number],
        )
        score = np.exp(20 * 250 / 255)
        assert probability.values[0] == pytest.approx(score / (score + 2), rel=1e-4)
        assert answer.sample_unix_nanos.tolist() == [5]


def test_what_cannot_be_decoded_is_said_in_its_place_and_disturbs_no_other() -> None:
    analysis = _load(CLASSIFIER_MANIFEST, make_classifier())
    good = make_image((0, 250, 0))
    answers = analysis.predict([_input(each) for each in (b"", good, b"GIF89a", good[:40], make_image((0, 0, 250)))])
    assert [type(each) for each in answers] == [
        InvalidObservationError,
        AnalysisResult,
        InvalidObservationError,
        InvalidObservationError,
        AnalysisResult,
    ]
    assert _sound(answers[4]).variables[0].values[0] == 2


def test_a_worker_gives_each_item_its_answer_whoever_refuses_its_neighbours() -> None:
    analysis = _load(CLASSIFIER_MANIFEST, make_classifier())
    identity, zstd = observation_pb2.PAYLOAD_ENCODING_IDENTITY, observation_pb2.PAYLOAD_ENCODING_ZSTD
    green, blue = make_image((0, 250, 0)), make_image((0, 0, 250))
    items = [
        WorkItem(payload, encoding, len(payload), "camera", 5 + place)
        for place, (payload, encoding) in enumerate(
            [(b"no frame", zstd), (green, identity), (b"GIF89a", identity), (b"torn", zstd), (blue, identity)]
        )
    ]
    done = finish_in_blocks(9, analysis, prepare_batch(analysis, items))
    assert (done.job_id, [block.places for block in done.blocks]) == (9, [[1, 4]])
    answers = done.results()
    assert [answers[place].sample_unix_nanos[0] for place in (1, 4)] == [6, 9]  # type: ignore[union-attr]
    assert [answers[place].variables[0].values[0] for place in (1, 4)] == [1, 2]  # type: ignore[union-attr]
    assert ["Zstandard" in str(answers[place]) for place in (0, 2, 3)] == [True, False, True]
    assert "PNG, JPEG" in str(answers[2])


@pytest.mark.parametrize("batch", ["b", 1, 4])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_batch_says_what_each_payload_alone_says(batch: int | str, count: int) -> None:
    analysis = _load(PROFILE_MANIFEST, make_profile_model(gain=2.0, batch=batch))
    answers = analysis.predict([_input(make_profile(float(value))) for value in range(count)])
    assert [_sound(each).variables[0].values[0] for each in answers] == [2.0 * value for value in range(count)]


def test_images_of_many_sizes_share_a_batch_where_the_model_takes_any() -> None:
    manifest = CLASSIFIER_MANIFEST.replace("resize = { width = 8, height = 8 }\n", "")
    model = onnx.ModelProto.FromString(make_classifier())
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"side{place}"
    analysis = _load(manifest, model.SerializeToString())
    sizes = [(3, 5), (9, 9), (3, 5), (30, 2)]
    answers = analysis.predict([_input(make_image((0, 0, 250), size)) for size in sizes])
    assert [_sound(each).variables[0].values[0] for each in answers] == [2, 2, 2, 2]


def _prepare(payload: bytes, **declared: object) -> np.ndarray:  # type: ignore[type-arg]
    preparation = Preparation(InputDeclaration.model_validate(declared))
    return preparation.prepare([preparation.decode(payload)])[0]


def _gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    columns = np.linspace(0, 255, width).astype(np.uint8)
    image = Image.fromarray(np.tile(columns, (height, 1)))
    return image.convert(mode)


def _encode(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_images_are_normalised_as_in_training() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    got = _prepare(make_image((10, 20, 30), (4, 3)), decode="image", scale=1 / 255, mean=mean, std=std)
    wanted = (np.array([10, 20, 30]) / 255 - mean) / std
    assert got.shape == (3, 3, 4) and got.dtype == np.float32 and got.flags.c_contiguous
    assert np.allclose(got, wanted[:, None, None], rtol=1e-6)
    other = _prepare(make_image((10, 20, 30), (4, 3)), decode="image", scale=1 / 255, mean=mean, std=std, layout="nhwc")
    assert np.array_equal(other, got.transpose(1, 2, 0))


@pytest.mark.parametrize(("fit", "left", "right"), [("stretch", 0, 255), ("cover", 96, 160), ("contain", 0, 255)])
def test_images_are_fitted_as_declared(fit: str, left: int, right: int) -> None:
    resize = {"width": 16, "height": 16, "fit": fit, "method": "box"}
    got = _prepare(_encode(_gradient(64, 16)), decode="image", colour="grey", resize=resize, dtype="uint8")[0]
    assert got.shape == (16, 16)
    assert abs(int(got[8, 0]) - left) <= 8 and abs(int(got[8, -1]) - right) <= 8
    assert (got[0] == 0).all() == (fit == "contain")


def test_the_middle_is_cut_out_after_resizing() -> None:
    declared = {"decode": "image", "colour": "grey", "crop": {"width": 2, "height": 4}, "dtype": "uint8"}
    whole = np.asarray(_gradient(10, 8, "L"))
    assert np.array_equal(_prepare(_encode(_gradient(10, 8, "L")), **declared)[0], whole[2:6, 4:6])
    with pytest.raises(InvalidObservationError, match="at least 2 x 4 pixels"):
        _prepare(_encode(_gradient(10, 3)), **declared)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_images_of_16_bits_keep_their_values(kind: str) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    payload = _encode(Image.fromarray(values), kind)
    assert np.array_equal(_prepare(payload, decode="image", colour="grey")[0], values)
    assert np.array_equal(_prepare(payload, decode="image", colour="rgb"), np.stack([values] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA", "CMYK"])
def test_images_in_other_modes_are_converted(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    payload = _encode(Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode), kind)
    assert np.array_equal(_prepare(payload, decode="image"), np.full((3, 4, 4), 255, np.float32))


def _npy(values: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version, allow_pickle=True)
    return stream.getvalue()


NPY = {"decode": "npy", "stored_dtype": "float64", "shape": (2, 3), "dtype": "float64"}


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_files_are_read_in_any_order(version: tuple[int, int], dtype: str, order: str) -> None:
    values = np.arange(6.0).reshape(2, 3)
    payload = _npy(np.array(values, dtype=dtype, order=order), version)  # type: ignore[call-overload]
    assert np.array_equal(_prepare(payload, **NPY), values)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x93NUMPY",
        _npy(np.zeros((3, 2))),
        _npy(np.zeros((2, 3), np.float32)),
        _npy(np.zeros((2, 3)))[:-1],
        _npy(np.zeros((2, 3))) + b"x",
        _npy(np.array([[print] * 3] * 2, dtype=object)),
        _npy(np.zeros((2, 3))).replace(b"(2, 3)", b"(2, 9999999999999)"),
    ],
)
def test_what_is_no_such_numpy_file_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidObservationError):
        _prepare(payload, **NPY)


def test_bare_numbers_are_little_endian_and_as_many_as_declared() -> None:
    declared = {"decode": "tensor", "stored_dtype": "uint16", "shape": (3,)}
    assert _prepare(b"\x01\x00\x00\x01\xff\xff", **declared).tolist() == [1.0, 256.0, 65535.0]
    with pytest.raises(InvalidObservationError, match="expected 6 bytes"):
        _prepare(b"\x01\x00", **declared)


def test_large_numbers_lose_nothing_before_they_are_brought_near_zero() -> None:
    payload = np.array([2_000_000_001, 2_000_000_002], "<i4").tobytes()
    got = _prepare(payload, decode="tensor", stored_dtype="int32", shape=(2,), offset=-2_000_000_000)
    assert got.tolist() == [1.0, 2.0]


@settings(max_examples=50)
@given(st.binary(max_size=300), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM"]))
def test_whatever_an_image_holds_it_is_decoded_or_refused(noise: bytes, start: bytes) -> None:
    preparation = Preparation(InputDeclaration.model_validate({"decode": "image"}))
    try:
        assert preparation.decode(start + noise).ndim == 3
    except InvalidObservationError as error:
        assert str(error).startswith("expected an image")


TIMED_MANIFEST = """
analysis = "heights"
instrument_models = ["cl51"]
sample_spacing_s = 0.5
input = { decode = "tensor", stored_dtype = "float32", shape = [2] }

[[outputs]]
name = "pair"
kind = "values"
variables = [{ name = "base", unit = "m" }, { name = "top", unit = "m" }]
fill_value = -999

[[outputs]]
name = "sky"
kind = "class"
activation = "sigmoid"
variable = "sky"
labels = ["clear", "cloudy"]
probability = "sky_probability"
"""


def test_many_instants_of_a_payload_have_their_times_and_missing_values() -> None:
    manifest = read_manifest(TIMED_MANIFEST)
    pair = np.array([[[1, 2], [-999, 4], [5, 6]]], np.float64)
    sky = np.array([[0.0, 9.0, np.nan]], np.float32)
    result = interpret(manifest, [pair, sky], [1_000]).result(0)
    assert result.sample_unix_nanos.tolist() == [1_000, 500_001_000, 1_000_001_000]
    base, top, cloud, probability = result.variables
    assert np.array_equal(base.values, np.array([1, np.nan, 5], np.float32), equal_nan=True)
    assert top.values.tolist() == [2, 4, 6] and top.values.dtype == np.float32
    assert np.array_equal(cloud.values, np.array([0, 1, np.nan], np.float32), equal_nan=True)
    assert probability.values[:2] == pytest.approx([0.5, 1 / (1 + np.exp(-9.0))], rel=1e-5)
    assert np.isnan(probability.values[2])


@pytest.mark.parametrize(
    ("pair", "sky"),
    [
        (np.zeros((1, 3, 3)), np.zeros((1, 3))),
        (np.zeros((1, 3, 2)), np.zeros((1, 4))),
        (np.zeros((2, 3, 2)), np.zeros((1, 3))),
        (np.zeros(()), np.zeros((1, 3))),
        (np.zeros((1, 0, 2)), np.zeros((1, 0))),
        (np.zeros((1, 3, 2), np.complex64), np.zeros((1, 3))),
    ],
)
def test_outputs_of_another_shape_or_type_are_refused(pair: np.ndarray, sky: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidRequestError, match="expected"):
        interpret(read_manifest(TIMED_MANIFEST), [pair, sky], [0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shape = [8]", "shape = [9]", r"expected shape \(batch, 9\)"),
        ("shape = [8]", 'shape = [8]\ndtype = "float64"', r"expected tensor\(double\)"),
        ("shape = [8]", 'shape = [8]\nname = "z"', "expected an input 'z'"),
        ('name = "y"', 'name = "z"', "expected an output 'z'"),
    ],
)
def test_a_manifest_that_does_not_fit_the_model_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        _load(PROFILE_MANIFEST.replace(old, new, 1), make_profile_model())


def test_a_model_of_a_user_does_not_load_on_a_gpu() -> None:
    with pytest.raises(InvalidRequestError, match="expected the device cpu"):
        load_onnx(ModelPackage(ModelKey("some", 1), PROFILE_MANIFEST, make_profile_model()), threads=1, device="cuda:0")


def test_what_a_model_raises_at_work_is_raised() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = onnx.numpy_helper.from_array(np.array([1, 5], np.int64), "shape")
    model = make_model([node], [floats("x", "b", 8)], [floats("y", "b", 1)], [shape])
    with pytest.raises(Exception, match="Reshape"):
        _load(PROFILE_MANIFEST, model.SerializeToString()).predict([_input(make_profile())])
