#!/usr/bin/env python3
"""Makes tests/golden/tokenizer-random-*.json: random texts and ids as PyPI's `tokenizers` encodes and
decodes them. Three files are about published tokenizers; the others hold small tokenizers of their
own, trained here, in the shapes of further families, each with awkward added tokens.

usage: make_random_goldens.py   (needs tokenizers; run from the root of the repository)
"""
import json
import lzma
import pathlib
import random
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

GOLDEN = pathlib.Path("tests/golden")
TEXTS = 400
WORDS = ("the quick brown fox don't I'LL we've it's HTTPServer camelCase x86_64 naïve Straße İstanbul "
         "def main(): return[i]for{k:v} 你好世界 小明有12个苹果 ラーメン ひらがな カタカナ 한국어 русский "
         "العربية עברית ไทย हिन्दी ﬁne ½ ² ⅷ ١٢٣ 𝟘𝟙 e\u0301 a\u0308 \u1100\u1161\u11a8 Å Ω 한 ẛ̣ 'ſ 'S 'T'").split()
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "🫠"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2003", "\u0085", "\u180e",
          "\u200b", "\u2028", "\x0b", "\x0c", "\x1c"]
PUNCT = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["…", "——", "。", ",", "!", "«", "»", "€", "→", "∑", "...", "##", "//", "::"]


def assigned(rng):
    while True:
        c = chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x3000, 0xD800),
                            rng.randrange(0xF900, 0x10000), rng.randrange(0x10000, 0x20000)]))
        # Ages differ between Unicode tables: characters that Unicode 13 lacks are left out.
        if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
            return c


def random_text(rng, added):
    parts = []
    for _ in range(rng.randrange(1, 14)):
        kind = rng.randrange(11)
        if kind <= 2:
            parts.append(rng.choice(WORDS))
        elif kind <= 4:
            parts.append(rng.choice(SPACES))
        elif kind == 5:
            parts.append(rng.choice(PUNCT) * rng.choice([1, 1, 2, 5]))
        elif kind == 6:
            parts.append(str(rng.randrange(10 ** rng.randrange(1, 12))))
        elif kind == 7:
            parts.append(rng.choice(EMOJI))
        elif kind == 8:
            parts.append("".join(assigned(rng) for _ in range(rng.randrange(1, 5))))
        elif kind == 9:
            parts.append("".join(rng.choice("aAbBzZ \n'.") for _ in range(rng.randrange(1, 12))))
        elif added:
            token = rng.choice(added)
            parts.append(token if rng.randrange(4) else token[:rng.randrange(len(token))])
    return "".join(parts)


def cases(tokenizer, seed, texts=TEXTS):
    rng = random.Random(seed)
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()][:40]
    out = []
    for _ in range(texts):
        text = random_text(rng, added)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        case = {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        if skipped != case["decoded"]:
            case["decoded_skip_special"] = skipped
        out.append(case)
    size = tokenizer.get_vocab_size()
    decode = []
    for _ in range(texts // 4):
        ids = [rng.randrange(min(size, rng.choice([300, size]))) for _ in range(rng.randrange(1, 10))]
        decode.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                       "decoded_skip_special": tokenizer.decode(ids, skip_special_tokens=True)})
    return {"cases": out, "decode": decode}


def write(name, content):
    path = GOLDEN / f"tokenizer-random-{name}.json"
    head = {"format": 1, "made_with": f"tokenizers {tokenizers.__version__}"}
    path.write_text(json.dumps({**head, **content}, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


def corpus():
    text = pathlib.Path("tests/golden/tokenizer-tiny-r1.json").read_text()
    lines = [case["text"] for case in json.loads(text)["cases"]]
    return lines * 3 + WORDS * 5


AWKWARD = [AddedToken("<bos>", special=True, normalized=False), AddedToken("<eos>", special=True, normalized=False),
           AddedToken("<left>", special=True, normalized=False, lstrip=True),
           AddedToken("<right>", special=False, normalized=False, rstrip=True),
           AddedToken("word", special=False, normalized=True, single_word=True),
           AddedToken("<both>", special=False, normalized=True, lstrip=True, rstrip=True),
           AddedToken("<both>more", special=False, normalized=False), AddedToken("é", special=False, normalized=True),
           AddedToken("two words", special=False, normalized=True)]
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(pre_tokenizer, normalizer=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=380, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def sentencepiece(metaspace):
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trainer = trainers.BpeTrainer(vocab_size=460, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"] + bytes_)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=metaspace == "always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=metaspace)
        tokenizer.train_from_iterator([l for l in corpus() if l.isascii()], trainer)
    else:
        # Trained on words, so that the vocabulary is reasonable; then used on whole texts.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.train_from_iterator([l for l in corpus() if l.isascii()], trainer)
        spec = json.loads(tokenizer.to_str())
        spec["pre_tokenizer"] = None
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(" ", 1, 0)])
    # The bytes are of the model only, as in the published ones.
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def split(pattern, behavior, invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def small():
    level = pre_tokenizers.ByteLevel
    yield "o200k", byte_level(pre_tokenizers.Sequence([split(O200K, "isolated"), level(False, use_regex=False)]),
                              ignore_merges=True)
    yield "neox", byte_level(level(False), normalizers.NFC())
    yield "prefix-space", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level(True)]), normalizers.NFKC())
    for behavior in ("removed", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            name = f"split-{behavior}{'-inverted' if invert else ''}".replace("_", "-")
            yield name, byte_level(pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(False), split(r"\s+|[\w]{3}|\d", behavior, invert), level(False, use_regex=False)]))
    yield "mixtral", sentencepiece(None)
    yield "metaspace-always", sentencepiece("always")
    yield "metaspace-first", sentencepiece("first")


def main():
    for name in ("deepseek-v3", "qwen3"):
        raw = lzma.open(GOLDEN / "tokenizers" / name / "tokenizer.json.xz").read().decode()
        write(name, cases(Tokenizer.from_str(raw), name))
    write("tiny-r1", cases(Tokenizer.from_file("models/tiny-r1/tokenizer.json"), "tiny-r1"))
    rest = []
    for name, tokenizer in small():
        tokenizer.add_tokens(AWKWARD)
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        rest.append({"name": name, "tokenizer": json.loads(tokenizer.to_str()), **cases(tokenizer, name, 50)})
    write("families", {"families": rest})


if __name__ == "__main__":
    main()
