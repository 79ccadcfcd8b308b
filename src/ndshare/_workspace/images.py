"""The values of a workspace on a cluster, at the caller: what they hold when a round of calls begins.

An *image* is what travels: a large block of shared memory, or all small ones side by side. Its content goes
to each machine once, and again when it has changed by the beginning of a later round.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ndshare._transport import Bytes, Chunks, Content, Manifest, aligned, is_zero

#: Smaller blocks share an image: each image is a file on every machine.
_ALONE_BYTES = 1 << 20


@dataclasses.dataclass(slots=True)
class _Image:
    blocks: list[int]
    nbytes: int
    base: bytes | None = None
    contents: dict[bytes, Content] = dataclasses.field(default_factory=dict)


class Images:
    """The images of all blocks that a manifest refers to.

    Parameters
    ----------
    manifest : Manifest
        Its blocks are the values'.

    Attributes
    ----------
    contents : dict
        Contents of the images by hash, when they were looked at.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.contents: dict[bytes, Content] = {}
        self.table: dict[int, tuple[int, int, int]] = {}
        small = _Image([], 0)
        self._images = [small]
        for number, block in enumerate(manifest.blocks):
            block.kept = True  # other manifests leave them to this one
            nbytes = block.memory.size
            if nbytes >= _ALONE_BYTES:
                self.table[number] = len(self._images), 0, nbytes
                self._images.append(_Image([number], nbytes))
            else:
                self.table[number] = 0, small.nbytes, nbytes
                small.blocks.append(number)
                small.nbytes += aligned(nbytes)
        small.nbytes = max(1, small.nbytes)

    def look(self) -> tuple[tuple[int, bytes | None], ...]:
        """Return size and content (a hash, None for zeros) of each image as it is now."""
        contents: dict[bytes, Content] = {}
        for image in self._images:
            memory = self._gathered(image)
            chunks = None if is_zero(memory) else Chunks.of(memory)
            base = None if chunks is None else chunks.digest()
            if base != image.base:
                image.base = base
                image.contents = {} if chunks is None else chunks.contents(memory.copy())
            contents |= image.contents
        self.contents = contents
        return tuple((image.nbytes, image.base) for image in self._images)

    def _gathered(self, image: _Image) -> Bytes:
        """Return the memory of an image; small blocks are copied."""
        if image is not self._images[0]:
            return self._manifest.blocks[image.blocks[0]].memory
        memory = np.zeros(image.nbytes, np.uint8)
        for number in image.blocks:
            _, start, nbytes = self.table[number]
            memory[start : start + nbytes] = self._manifest.blocks[number].memory
        return memory
