"""The tensor types of GGML, by their numbers in GGUF files.

A row of n elements is stored as n / block_size blocks of block_bytes each. Numbers, names and
sizes are those of ggml.h and ggml-common.h.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GGMLType:
    """How one tensor type is stored; `name` is lower case ("q4_1")."""

    name: str
    block_size: int  # elements in a block
    block_bytes: int  # bytes of a block

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of n elements; n must be a multiple of block_size."""
        return n // self.block_size * self.block_bytes


TYPES: dict[int, GGMLType] = {
    number: GGMLType(*layout)
    for number, layout in {
        0: ("f32", 1, 4),
        1: ("f16", 1, 2),
        2: ("q4_0", 32, 18),
        3: ("q4_1", 32, 20),
        6: ("q5_0", 32, 22),
        7: ("q5_1", 32, 24),
        8: ("q8_0", 32, 34),
        9: ("q8_1", 32, 36),
        10: ("q2_k", 256, 84),
        11: ("q3_k", 256, 110),
        12: ("q4_k", 256, 144),
        13: ("q5_k", 256, 176),
        14: ("q6_k", 256, 210),
        15: ("q8_k", 256, 292),
        16: ("iq2_xxs", 256, 66),
        17: ("iq2_xs", 256, 74),
        18: ("iq3_xxs", 256, 98),
        19: ("iq1_s", 256, 50),
        20: ("iq4_nl", 32, 18),
        21: ("iq3_s", 256, 110),
        22: ("iq2_s", 256, 82),
        23: ("iq4_xs", 256, 136),
        24: ("i8", 1, 1),
        25: ("i16", 1, 2),
        26: ("i32", 1, 4),
        27: ("i64", 1, 8),
        28: ("f64", 1, 8),
        29: ("iq1_m", 256, 56),
        30: ("bf16", 1, 2),
        34: ("tq1_0", 256, 54),
        35: ("tq2_0", 256, 66),
        39: ("mxfp4", 32, 17),
        40: ("nvfp4", 64, 36),
        41: ("q1_0", 128, 18),
    }.items()
}

# Numbers of types that GGML has removed. Files with them are old; no current program reads them.
REMOVED_TYPES: dict[int, str] = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}

# The type of tables of numbers, which a family reads as float32, and how their names end.
INTEGERS = "i32"
INTEGER_TABLES = ("ffn_gate_tid2eid.weight",)

# The types that this package computes with.
SUPPORTED_TYPES = (
    *("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"),
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4"),
    *("iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_s", "iq1_m"),
    *("tq1_0", "tq2_0", "nvfp4"),
)
