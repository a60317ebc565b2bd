"""The families, each read from its file when somebody asks for it: all of them take 60 ms."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from airllm.models.family import Family

__all__ = ["FAMILIES"]

# The architectures of each file, as its FAMILY has them.
_FILES = {
    "afmoe": ("afmoe",),
    "apertus": ("apertus",),
    "arcee": ("arcee",),
    "arctic": ("arctic",),
    "baichuan": ("baichuan",),
    "bailingmoe2": ("bailingmoe2",),
    "bailingmoe3": ("bailingmoe3",),
    "bitnet": ("bitnet",),
    "bloom": ("bloom",),
    "chatglm": ("chatglm",),
    "codeshell": ("codeshell",),
    "cogvlm": ("cogvlm",),
    "cohere2": ("command-r", "cohere2"),
    "cohere2moe": ("cohere2moe",),
    "dbrx": ("dbrx",),
    "deci": ("deci",),
    "deepseek": ("bailingmoe", "deepseek"),
    "deepseek2": ("deepseek2", "mistral4"),
    "deepseek4": ("deepseek4",),
    "deepseek32": ("deepseek32",),
    "dots1": ("dots1",),
    "ernie45": ("ernie4_5", "ernie4_5-moe"),
    "exaone": ("exaone",),
    "exaone4": ("exaone4", "exaone-moe"),
    "falcon": ("falcon",),
    "falcon_h1": ("falcon-h1",),
    "gemma": ("gemma",),
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3",),
    "gemma3n": ("gemma3n",),
    "gemma4": ("gemma4",),
    "glm4": ("glm4",),
    "glm4moe": ("glm4moe",),
    "glm5_next": ("glm5-next",),
    "glm_dsa": ("glm-dsa",),
    "gpt2": ("gpt2", "starcoder"),
    "gptj": ("gptj",),
    "gptneox": ("gptneox",),
    "gpt_oss": ("gpt-oss",),
    "granite_swa": ("granite_swa",),
    "granite": ("granite", "granitehybrid", "granitemoe", "minicpm"),
    "grovemoe": ("grovemoe",),
    "grok": ("grok",),
    "hunyuan": ("hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder"),
    "hy_v3": ("hy_v3",),
    "hy_v4": ("hy_v4",),
    "jais": ("jais",),
    "jamba": ("jamba",),
    "kimi_k3": ("kimi-k3",),
    "kimi_linear": ("kimi-linear",),
    "laguna": ("laguna",),
    "lfm2": ("lfm2", "lfm2moe"),
    "llama": ("internlm2", "llama", "xverse"),
    "llama4": ("llama4",),
    "mamba": ("mamba", "mamba2"),
    "maple": ("maple",),
    "mellum": ("mellum",),
    "mimo2": ("mimo2",),
    "minicpm3": ("minicpm3",),
    "minimax_m2": ("minimax-m2",),
    "minimax_m3": ("minimax-m3",),
    "mistral3": ("mistral3",),
    "mpt": ("mpt",),
    "muse_glimmer": ("muse-glimmer",),
    "nanbeige": ("nanbeige",),
    "nemotron": ("jais2", "nemotron"),
    "nemotron_h": ("nemotron_h", "nemotron_h_moe"),
    "olmo": ("olmo",),
    "olmo2": ("olmo2",),
    "olmoe": ("olmoe",),
    "openelm": ("openelm",),
    "phi2": ("phi2",),
    "phi3": ("phi3",),
    "phimoe": ("phimoe",),
    "plamo": ("plamo",),
    "plamo2": ("plamo2",),
    "plamo3": ("plamo3",),
    "plm": ("plm",),
    "qwen": ("qwen",),
    "qwen2": ("paddleocr", "pangu-embedded", "qwen2", "qwen2vl"),
    "qwen2moe": ("qwen2moe",),
    "qwen3": ("qwen3", "qwen3vl"),
    "qwen3moe": ("qwen3moe", "qwen3vlmoe"),
    "qwen4exp": ("qwen4exp",),
    "qwen35": ("qwen35", "qwen35moe", "qwen3next"),
    "refact": ("refact",),
    "seed_oss": ("seed_oss",),
    "smallthinker": ("smallthinker",),
    "smollm3": ("smollm3",),
    "spark2_5": ("spark2_5",),
    "stablelm": ("orion", "stablelm"),
    "starcoder2": ("starcoder2",),
    "step35": ("step35",),
    "talkie": ("talkie",),
}


class _Families(Mapping[str, Family]):
    def __init__(self, files: Mapping[str, tuple[str, ...]]) -> None:
        self._files = {name: file for file, names in files.items() for name in names}

    def __getitem__(self, architecture: str) -> Family:
        file = self._files[architecture]
        family: Family = import_module(f"airllm.models.{file}").FAMILY
        return family

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


# Keys are the values of GGUF's general.architecture.
FAMILIES: Mapping[str, Family] = _Families(_FILES)
