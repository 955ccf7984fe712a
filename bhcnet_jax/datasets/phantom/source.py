"""What names the synthetic set: a fingerprint of what draws it."""

import hashlib
import inspect

from bhcnet_jax.datasets.phantom import drawing


def fingerprint(seed: int = drawing.SEED) -> str:
    """SHA-256, hex, over the source of drawing.py and the pixels of the first ten slices of `seed`.

    The source makes every edit of the drawing count. The pixels, two of each kind, make the seed count, and
    libraries that draw otherwise than those here.
    """
    digest = hashlib.sha256(inspect.getsource(drawing).encode())
    for index in range(2 * len(drawing.KINDS)):
        drawn = drawing.draw_slice(index, seed)
        digest.update(f'{drawn.image.shape}'.encode() + drawn.image.tobytes() + drawn.mask.tobytes())
    return digest.hexdigest()
