"""Decode a store with zarr and numpy alone, as a stranger would: ``decode_alone.py STORE OUT.npz``."""

import sys

import numpy as np
import zarr

root = zarr.open_group(sys.argv[1], mode="r")
described = root.attrs["kdpipe"]
assert described["format"] == 1, "made for format 1"
assert described["state"] == "sealed", "not complete"
assert described["encoding"]["decode"] == "float32(codes) + row_max", "another encoding"
arrays = {}
for split in described["splits"]:
    codes, row_max = root[split]["codes"][...], root[split]["row_max"][...]
    arrays[f"{split} logits"] = codes.astype(np.float32) + row_max[..., None]
    arrays[f"{split} ids"] = root[split]["sample_id"][...]
    arrays[f"{split} labels"] = root[split]["labels"][...]
assert not {name for name in sys.modules if name.split(".")[0] in ("kdpipe", "torch")}
np.savez(sys.argv[2], classes=described["classes"], **arrays)
