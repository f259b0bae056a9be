"""From payloads to the array that a model gets, as its manifest declares. Knows no ONNX.

Payloads are a stranger's bytes: sizes are checked before anything is allocated, and what cannot be decoded is refused
in its place.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fieldpost.errors import InvalidObservationError
from server.models.manifest import Decode, InputDeclaration

PIXELS_MAX = 64 * 1024 * 1024
"""Of one image, before it is resized: 192 MiB in colour."""
NPY_HEADER_BYTES_MAX = 10_000

# By their first bytes, so that no other of Pillow's formats, some of which start programs, is ever asked.
IMAGE_STARTS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"II*\x00", TiffImageFile),
    (b"MM\x00*", TiffImageFile),
    (b"BM", BmpImageFile),
)
METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Preparation:
    """Decodes payloads one by one, and prepares many of one shape at once."""

    def __init__(self, declared: InputDeclaration) -> None:
        self._declared = declared
        decoders: dict[Decode, Callable[[bytes], NDArray[np.generic]]] = {
            Decode.IMAGE: self._decode_image,
            Decode.TENSOR: self._decode_tensor,
            Decode.NPY: self._decode_npy,
        }
        self.decode = decoders[declared.decode]
        """From a payload to its numbers, (height, width, channels) for images; raises InvalidObservationError."""
        std = np.asarray(declared.std or (1.0,), np.float64)
        self._gain = declared.scale / std
        self._bias = (declared.offset - np.asarray(declared.mean or (0.0,), np.float64)) / std
        if declared.stored_dtype is not None:
            self._stored_dtype = np.dtype(declared.stored_dtype).newbyteorder("<")
            self._stored_bytes = int(np.prod(declared.shape)) * self._stored_dtype.itemsize
        self._is_plain = bool(np.all(self._gain == 1) and np.all(self._bias == 0))

    def prepare(self, decoded: list[NDArray[np.generic]]) -> NDArray[np.generic]:
        """From what was decoded, all of one shape, to the model's input, batch axis first."""
        declared = self._declared
        stacked = np.concatenate(decoded).reshape(len(decoded), *decoded[0].shape)  # np.stack takes twice the time
        gain, bias = self._gain, self._bias
        if declared.decode is Decode.IMAGE and declared.layout == "nchw":
            stacked = stacked.transpose(0, 3, 1, 2)
            gain, bias = gain[:, None, None], bias[:, None, None]
        dtype = np.dtype(declared.dtype)
        if self._is_plain:
            return np.ascontiguousarray(stacked, dtype)
        # Small numbers fit float32 exactly; large ones would lose digits before an offset brings them near 0.
        is_small = stacked.dtype.itemsize <= 2 or stacked.dtype == np.float32
        working = np.dtype(np.float32 if is_small else np.float64)
        scaled: NDArray[np.floating] = np.empty(stacked.shape, working)
        np.multiply(stacked, gain.astype(working), out=scaled, casting="unsafe")
        np.add(scaled, bias.astype(working), out=scaled)
        if dtype.kind in "iu":
            np.rint(scaled, out=scaled)
        return scaled.astype(dtype, copy=False)

    def _decode_tensor(self, payload: bytes) -> NDArray[np.generic]:
        declared = self._declared
        if len(payload) != self._stored_bytes:
            raise InvalidObservationError(
                f"expected {self._stored_bytes} bytes, {declared.stored_dtype} of shape {declared.shape}, "
                f"but got {len(payload)}"
            )
        return np.frombuffer(payload, self._stored_dtype).reshape(declared.shape)

    def _decode_npy(self, payload: bytes) -> NDArray[np.generic]:
        declared = self._declared
        stream = io.BytesIO(payload)
        try:
            version = npy_format.read_magic(stream)
            read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, is_fortran, dtype = read_header(stream, max_header_size=NPY_HEADER_BYTES_MAX)
        except Exception as error:  # NumPy parses the header as Python, which has many ways to fail; of memory too
            raise InvalidObservationError(f"expected a NumPy file, but got: {error!r}") from error
        if dtype.newbyteorder("<") != self._stored_dtype or tuple(shape) != declared.shape:
            raise InvalidObservationError(
                f"expected {declared.stored_dtype} of shape {declared.shape}, but got {dtype} of shape {shape}"
            )
        content = payload[stream.tell() :]
        if len(content) != self._stored_bytes:
            raise InvalidObservationError(
                f"expected {self._stored_bytes} bytes after the header of the NumPy file, but got {len(content)}"
            )
        return np.frombuffer(content, dtype).reshape(declared.shape, order="F" if is_fortran else "C")

    def _decode_image(self, payload: bytes) -> NDArray[np.generic]:
        image = _open_image(payload)
        width, height = image.size
        if width * height > PIXELS_MAX:
            raise InvalidObservationError(
                f"expected an image of at most {PIXELS_MAX} pixels, but got {width} x {height}"
            )
        try:
            return self._bring_into_shape(image)
        except (InvalidObservationError, MemoryError):
            raise
        except Exception as error:  # whatever Pillow says of damaged bytes: it has no type of its own for that
            raise InvalidObservationError(f"expected an image, but it cannot be decoded: {error}") from error

    def _bring_into_shape(self, opened: ImageFile) -> NDArray[np.generic]:
        declared = self._declared
        is_deep = opened.mode in ("F", "I") or opened.mode.startswith("I;")  # more than 8 bits, one channel
        image: Image.Image = Image.fromarray(np.asarray(opened, np.float32)) if is_deep else opened
        if not is_deep:
            image = image.convert("RGB" if declared.colour == "rgb" else "L")
        if (resize := declared.resize) is not None:
            size, method = (resize.width, resize.height), METHODS[resize.method]
            if resize.fit == "stretch":
                image = image.resize(size, method)
            elif resize.fit == "cover":
                image = ImageOps.fit(image, size, method)
            else:
                image = ImageOps.pad(image, size, method)
        if (crop := declared.crop) is not None:
            left, top = (image.width - crop.width) // 2, (image.height - crop.height) // 2
            if left < 0 or top < 0:
                raise InvalidObservationError(
                    f"expected an image of at least {crop.width} x {crop.height} pixels, but got {image.size}"
                )
            image = image.crop((left, top, left + crop.width, top + crop.height))
        pixels: NDArray[np.generic] = np.asarray(image)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return np.repeat(pixels, declared.channel_count, axis=2) if is_deep else pixels


def _open_image(payload: bytes) -> ImageFile:
    """Reads the head of an image; its pixels are decoded later."""
    for start, kind in IMAGE_STARTS:
        if payload.startswith(start):
            try:
                return kind(io.BytesIO(payload))
            except MemoryError:
                raise
            except Exception as error:  # as above
                raise InvalidObservationError(f"expected an image, but its head cannot be read: {error}") from error
    raise InvalidObservationError(f"expected a PNG, JPEG, TIFF or BMP image, but got bytes that begin {payload[:8]!r}")
