"""Reads quantization_config of config.json: how a folder's weights are quantised.

Only the weights count: activations are not quantised as a folder asks for. The tensors show which
modules are quantised.
"""

from dataclasses import dataclass

from airllm.util.metadata import FormatError, Metadata

__all__ = ["METHODS", "Quantization", "read_quantization"]

WHOLE_ROW = 0
_MAX_GROUP = 2**20  # columns
_MAX_GROUPS = 16  # of modules; real files have one or two
_WAY_OUT = "the folder before it was quantised, or a GGUF file of the model, can be opened"
METHODS = ("fp8", "fbgemm_fp8", "mxfp4", "compressed-tensors", "modelopt", "awq", "gptq")
_FORMATS = (
    *("pack-quantized", "float-quantized", "naive-quantized", "mxfp4-pack-quantized"),
    *("nvfp4-pack-quantized", "mixed-precision"),
)


@dataclass(frozen=True)
class Quantization:
    """How the weights of a folder are quantised.

    method: quant_method. group_sizes: the columns that share a scale; modules may differ, and
    WHOLE_ROW stands for all columns of a row. block: rows and columns that share a scale of FP8;
    None: the shape of the scales shows whether each row or the whole matrix has a scale.
    symmetric: whether all zero points of GPTQ are 8. zero_offset: added to a stored zero point of
    GPTQ. reordered: whether columns may be in another order, which a tensor of each matrix then
    says.
    exact: FP8 matrices become F32, to be converted to another type, and not the type that they run
    in.
    """

    method: str
    group_sizes: tuple[int, ...] = ()
    block: tuple[int, int] | None = None
    symmetric: bool = False
    zero_offset: int = 0
    reordered: bool = False
    exact: bool = False


def read_quantization(config: Metadata) -> Quantization | None:
    """None if the folder is not quantised. FormatError names what is not supported."""
    said = config.get("quantization_config")
    if not said:
        return None
    if not isinstance(said, dict):
        raise config.fault("quantization_config is no object")
    r = Metadata(config.source, said)
    method = r.get("quant_method")
    if method in ("fp8", "fbgemm_fp8"):
        _expect(r, "fmt", "e4m3", None)
        return Quantization("fp8", block=_block(r, "weight_block_size"))
    if method == "mxfp4":
        return Quantization("mxfp4")
    if method == "modelopt":
        _expect(r, "quant_algo", "nvfp4", "w4a16_nvfp4")
        return Quantization("modelopt")
    if method == "awq":
        _expect(r, "bits", 4)
        _expect(r, "version", "gemm", None)
        _expect(r, "zero_point", True, None)
        return Quantization("awq", (_group_size(r),))
    if method == "gptq":
        _expect(r, "bits", 4)
        _expect(r, "checkpoint_format", "gptq", "gptq_v2", None)
        # The first version of the format subtracts 1 before it stores a zero point.
        offset = 0 if r.get("checkpoint_format") == "gptq_v2" else 1
        return Quantization(
            "gptq",
            (_group_size(r),),
            symmetric=r.get("sym") is True,
            zero_offset=offset,
            reordered=bool(r.get("desc_act")),
        )
    if method == "compressed-tensors":
        return _compressed_tensors(r)
    raise _refused(r, f"quant_method is {_shown(method)}; supported are {', '.join(METHODS)}")


def _compressed_tensors(r: Metadata) -> Quantization:
    _expect(r, "format", *_FORMATS)
    for key in ("sparsity_config", "transform_config"):
        value = r.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise _refused(r, f"{key} asks for something that is not supported")
    groups = r.get("config_groups")
    if not isinstance(groups, dict) or not 0 < len(groups) <= _MAX_GROUPS:
        raise _refused(r, f"config_groups does not describe 1 to {_MAX_GROUPS} groups of modules")
    sizes: set[int] = set()
    blocks: set[tuple[int, int]] = set()
    reordered = False
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise _refused(r, f"config_groups.{name[:40]} has no weights")
        g = Metadata(r.source, weights)
        _expect(g, "type", "int", "float")
        bits = (4, 8) if g.get("type") == "float" else (4,)
        _expect(g, "num_bits", *bits)
        _expect(g, "symmetric", True, None)
        if g.get("strategy") == "block":
            block = _block(g, "block_structure")
            if block is not None:
                blocks.add(block)
        elif g.get("strategy") == "tensor_group":  # NVFP4
            _expect(g, "type", "float")
            _expect(g, "num_bits", 4)
            _expect(g, "group_size", 16)
        elif g.get("num_bits") == 4:
            sizes.add(_group_size(g))
        reordered |= g.get("actorder") in (True, "group")
    if len(blocks) > 1:
        raise _refused(r, "config_groups has more than one block_structure")
    return Quantization(
        "compressed-tensors",
        tuple(sorted(sizes)),
        block=next(iter(blocks), None),
        reordered=reordered,
    )


def _group_size(r: Metadata) -> int:
    size = r.get("group_size")
    if size is None or size == -1:
        return WHOLE_ROW
    if type(size) is not int or not 0 < size <= _MAX_GROUP or size % 32:
        raise _refused(r, f"group_size is {_shown(size)}; expected a multiple of 32, or -1")
    return size


def _block(r: Metadata, key: str) -> tuple[int, int] | None:
    said = r.get(key)
    if said is None:
        return None
    if not isinstance(said, list) or [type(n) for n in said] != [int, int]:
        raise _refused(r, f"{key} is {_shown(said)}; expected two sizes")
    n, k = said
    if not (0 < n <= _MAX_GROUP and 0 < k <= _MAX_GROUP):
        raise _refused(r, f"{key} is {_shown(said)}; expected sizes from 1 to {_MAX_GROUP:,}")
    return n, k


def _expect(r: Metadata, key: str, *allowed: object) -> None:
    value = r.get(key)
    value = value.lower() if isinstance(value, str) else value
    if not any(value is each or (type(value) is type(each) and value == each) for each in allowed):
        wanted = " or ".join(str(each) for each in allowed if each is not None)
        raise _refused(r, f"{key} is {_shown(value)}; expected {wanted}")


def _refused(r: Metadata, text: str) -> FormatError:
    return r.fault(f"quantization_config: {text}. {_WAY_OUT[0].upper()}{_WAY_OUT[1:]}")


def _shown(value: object) -> str:
    return repr(value)[:60]
