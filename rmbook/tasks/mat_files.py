"""SVHN's own files, train_32x32.mat and test_32x32.mat: MATLAB's, of which two arrays of numbers are read."""

from pathlib import Path

import numpy as np
import scipy.io

from rmbook.errors import TaskError, reason

MOST_IMAGES = 10**6  # the largest file, extra_32x32.mat, has 531,131
SIDE = 32
NUMBERS = ("uint8", "uint16", "int16", "int32", "single", "double")  # MATLAB's names; no objects, cells or structs


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (examples, 32, 32, 3), uint8, and labels (examples,), int64, 1 to 9 and 10 for the digit 0.

    The sizes that the file's head tells are checked before its numbers are read.

    Raises:
        TaskError: it is no such file, or not whole.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("there is no such file")
        told = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
        shape, kind = told.get("X", ((), "no array"))
        count = shape[3] if len(shape) == 4 else 1 if shape == (SIDE, SIDE, 3) else 0  # MATLAB drops a last size of 1
        labels, label_kind = told.get("y", ((), "no array"))
        if shape[:3] != (SIDE, SIDE, 3) or kind != "uint8" or not 1 <= count <= MOST_IMAGES:
            raise ValueError(f"X must be uint8 of 32 x 32 x 3 x images, got {kind} of {shape}")
        if labels not in ((count, 1), (1, count)) or label_kind not in NUMBERS:
            raise ValueError(f"y must be one number for each of {count} images, got {label_kind} of {labels}")
        found = scipy.io.loadmat(path, variable_names=("X", "y"))
        values = np.asarray(found["y"], np.float64).reshape(-1)
        if not np.isin(values, range(11)).all():
            raise ValueError("y must hold the digits 1 to 9, and 10 for 0")
        return np.moveaxis(found["X"].reshape(SIDE, SIDE, 3, count, order="F"), 3, 0), values.astype(np.int64)
    except MemoryError:
        raise TaskError(f"{path}: the memory is too small for its images.") from None
    except Exception as error:  # noqa: BLE001 - damaged files show as errors of four kinds
        raise TaskError(f"{path} is no whole file of SVHN's cropped digits ({reason(error)}): get it again.") from None
