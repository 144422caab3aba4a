"""Images that stay encoded, on disk or in an archive, until a batch asks for them."""

import concurrent.futures
import dataclasses
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from jmpq.zoo.architectures import Preprocessing


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EncodedImages:
    """An array [images, crop, crop, channels] of uint8, decoded image by image when indexed.

    Attributes:
        read: The bytes of an encoded image, from its index.
        name: Name of an image, for errors.
        indices: Indices of these images, in order.
        preprocessing: Resizing and cropping, to grey where it has one channel (without
            normalisation).
    """

    read: Callable[[int], bytes]
    name: Callable[[int], str]
    indices: Int[np.ndarray, " _"]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the array of all images."""
        rule = self.preprocessing
        return (len(self), rule.crop, rule.crop, len(rule.mean))

    @property
    def nbytes(self) -> int:
        """Bytes that all images would take decoded."""
        return int(np.prod(self.shape))

    def take(self, positions: Int[np.ndarray, " _"]) -> "EncodedImages":
        """The images at these positions, still encoded."""
        return dataclasses.replace(self, indices=self.indices[positions])

    def __getitem__(
        self, positions: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """Decode the images at these positions, on all cores.

        Raises:
            ValueError: If one is not a readable image; it is named.
        """
        chosen = [int(i) for i in self.indices[positions]]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self._decode, chosen))
        return np.stack(images) if images else np.zeros((0, *self.shape[1:]), np.uint8)

    def _decode(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        rule = self.preprocessing
        try:
            with Image.open(io.BytesIO(self.read(index))) as image:
                if image.mode[0] in "IF":  # would be cut off at 255
                    raise ValueError(f"its pixels are {image.mode}, expected 8 bits a channel")
                return resized_crop(image.convert("L" if len(rule.mean) == 1 else "RGB"), rule)
        except UnidentifiedImageError as error:  # its own text names the buffer, not the file
            raise ValueError(
                f"{self.name(index)} is not an image of a known format. Replace it, or move it "
                "away."
            ) from error
        except Exception as error:  # whatever a decoder raises where data are spoilt
            raise ValueError(
                f"{self.name(index)} is not a readable image: {str(error).rstrip('.')}. "
                "Replace it, or move it away."
            ) from error

    def update(self, digest: Any) -> None:
        """Add what identifies the images to a hash: their bytes as stored, resize and crop."""
        sizes = [self.preprocessing.resize, self.preprocessing.crop]
        digest.update(f"encoded {len(self)} {sizes}".encode())
        for index in self.indices:
            try:
                data = self.read(int(index))
            except Exception as error:  # whatever an archive raises where it is spoilt
                raise ValueError(
                    f"{self.name(int(index))} cannot be read: {str(error).rstrip('.')}. Copy "
                    "or download the images again."
                ) from error
            digest.update(f"{len(data)}:".encode())
            digest.update(data)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EncodedLabels:
    """An array of labels that are read when they are indexed.

    Attributes:
        read: The label of an index.
        count: Number of labels.
    """

    read: Callable[[int], int]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, positions: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        return np.fromiter(map(self.read, positions.tolist()), np.int32, len(positions))


def resized_crop(image: Image.Image, rule: Preprocessing) -> UInt8[np.ndarray, "_ _ channels"]:
    """Shorter side to `resize` (bilinear, antialiased), then the middle `crop` by `crop`.

    References:
        torchvision.transforms: Resize and CenterCrop of PIL images, rounding included.
    """
    width, height = image.size
    short = min(width, height)
    if short != rule.resize:
        width, height = (
            rule.resize if side == short else int(rule.resize * side / short)
            for side in (width, height)
        )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - rule.crop) / 2), round((height - rule.crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + rule.crop, top + rule.crop)))
    return pixels.reshape(rule.crop, rule.crop, -1)
