"""Rules for cutting text into words before byte-pair encoding, by name (`tokenizer.ggml.pre`).

Merges never cross the edge of a word. A model that was trained with one rule therefore sees
strange tokens under another, and an unknown name is an error rather than a guess. The rules are
those of the models' own tokenisers; the names are those of llama.cpp.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
THREE_DIGITS = "[0-9][0-9][0-9]"
_LLAMA3 = "|".join([_CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES])
_QWEN2 = "|".join([_CONTRACTION, _WORD, r"\p{N}", _SYMBOLS, _SPACES])
_QWEN35 = "|".join(
    [
        _CONTRACTION,
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        _SPACES,
    ]
)

# A word has one case: "HelloWorld" is two words. _EDGE may precede a word; _UPPER and _LOWER are
# the characters of its first and its second part.
_EDGE = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHED_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = "|".join(
    [
        f"{_EDGE}{_UPPER}*{_LOWER}+",
        f"{_EDGE}{_UPPER}+{_LOWER}*",
        r"\p{N}",
        _SLASHED_SYMBOLS,
        _SPACES,
    ]
)
_GPT4O = "|".join(
    [
        f"{_EDGE}{_UPPER}*{_LOWER}+{_CONTRACTION}?",
        f"{_EDGE}{_UPPER}+{_LOWER}*{_CONTRACTION}?",
        r"\p{N}{1,3}",
        _SLASHED_SYMBOLS,
        _SPACES,
    ]
)
# Spaces in runs of powers of two.
_JAIS2_SPACES = r"\s*[\r\n]+|" + "|".join(
    [*(rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1)), r"\s{1,2}(?!\S)", r"\s{1}"]
)
_JAIS2 = "|".join([_CONTRACTION, _WORD, r"\p{N}{1,3}", _SYMBOLS, _JAIS2_SPACES])
_SEED = "|".join([_CONTRACTION, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES])
_BAILING = "|".join([_CONTRACTION, _WORD, r"\p{N}", _SYMBOLS, r"\s*[\r\n]|\s+(?!\S)|\s+"])
_CJK = r"[一-龥ࠀ-一가-\ud7ff]+"
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
)
_DEEPSEEK3 = "|".join([*_DEEPSEEK3_WORDS, r" ?[\p{P}\p{S}]+[\r\n]*", _SPACES])
_SPARK = "|".join([*_DEEPSEEK3_WORDS, r" ?[\p{P}\p{S}]+", r"[\r\n]|\s+(?!\S)|\s+"])
# Words in a row are one piece.
_EXAONE_MOE = "|".join(
    [
        _CONTRACTION,
        r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
        r"\s*[\r\n]|\s+(?!\S)|\s+",
    ]
)
# Digits in threes from the right: 1, 234, 567. A run's end is looked for at its start alone, so
# that a long one takes time in proportion to its length.
_DIGITS_FROM_RIGHT = r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})*+(?!\p{N}))|\p{N}{3}"
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f"
    "\u2f00-\u2fdf\u0e00-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"
    "\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_MINICPM5 = "|".join([_CONTRACTION, _WORD, r"\p{N}+", _SYMBOLS, _SPACES])
# Letters that have a case, as Unicode 11 knew them, but for Georgian and mathematical ones.
_CASED = (
    "A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}",
)
_NOT_HAN = "&&[^\\p{Han}]]"
_HAN_UPPER, _HAN_LOWER = (letters.removesuffix("]") + _NOT_HAN for letters in (_UPPER, _LOWER))
_KIMI = "|".join(
    [
        r"[\p{Han}]+",
        f"{_EDGE}{_HAN_UPPER}*{_HAN_LOWER}+{_CONTRACTION}?",
        f"{_EDGE}{_HAN_UPPER}+{_HAN_LOWER}*{_CONTRACTION}?",
        r"\p{N}{1,3}",
        _SYMBOLS,
        _SPACES,
    ]
)


@dataclass(frozen=True)
class Rule:
    """Each pattern in turn cuts the pieces that the previous pattern left, into its matches and the
    text between them."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token becomes that token, without merges
    add_bos: bool = False  # if the file does not say
    composed: bool = False  # text is first normalised to NFC: e + ´ becomes é

    def build(self) -> "PreTokenizer":
        """The rule for the `tokenizers` library. It writes words in byte-level characters."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

        splits = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


_FAMILIES: list[tuple[str, Rule]] = [
    (
        "gpt-2 gpt2 default phi-2 jais trillion gigachat a.x-4.0 mellum exaone4",
        Rule((GPT2_WORDS,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        Rule((r"\p{N}", GPT2_WORDS)),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        Rule((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("mpt olmo", Rule((GPT2_WORDS,), composed=True)),  # GPT-NeoX's
    ("dbrx smaug-bpe chatglm-bpe", Rule((_LLAMA3,))),
    ("glm4 glm5", Rule((_LLAMA3,), ignore_merges=True)),
    ("bloom poro-chat gpt3-finnish", Rule((_BLOOM,))),
    ("jais-2", Rule((_JAIS2,))),
    ("seed-coder", Rule((_SEED,))),
    ("bailingmoe bailingmoe2 llada-moe", Rule((_BAILING,))),
    ("deepseek-llm", Rule(_DEEPSEEK)),
    ("kimi-k2", Rule((_KIMI,))),
    ("exaone-moe", Rule((_EXAONE_MOE,))),
    ("afmoe", Rule((_DIGITS_FROM_RIGHT, _ASIAN, _DEEPSEEK3))),
    ("minicpm5", Rule((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True)),
    ("deepseek-coder", Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"))),
    ("falcon", Rule((PUNCTUATION, GPT2_WORDS, THREE_DIGITS))),
    ("qwen2", Rule((_QWEN2,), composed=True)),
    ("deepseek-r1-qwen stablelm2 megrez hunyuan grok-2 solar-open kormo f2llmv2", Rule((_QWEN2,))),
    ("qwen35", Rule((_QWEN35,), composed=True)),
    ("tekken", Rule((_TEKKEN,), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2 minimax-m2 talkie", Rule((_GPT4O,))),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        Rule((r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
    ),
    ("spark2_5", Rule((r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", _SPARK, r"\p{N}"))),
]

RULES: dict[str, Rule] = {name: rule for names, rule in _FAMILIES for name in names.split()}


def rule_name(patterns: tuple[str, ...], ignore_merges: bool, composed: bool) -> str | None:
    """The first name of the rule with these settings; None if there is no such rule."""
    for name, rule in RULES.items():
        if (rule.patterns, rule.ignore_merges, rule.composed) == (
            patterns,
            ignore_merges,
            composed,
        ):
            return name
    return None
