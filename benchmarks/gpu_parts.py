"""The parts of `benchmark --case gpu`, the most valuable first."""

from dataclasses import dataclass, field, replace

from benchmarks.work import options

FAMILIES = ("llama-7b", "bloom-7b1", "opt-6.7b", "gptj-6b")
STEP = {"random": True, "rows": 4, "tokens": 512, "micro": 4}
DECODE = {"random": True, "adapter": "", "tokens": 512, "new": 64, "first": True}
LOOP = {"dtype": "bfloat16", "adapter": "lora", "rows": 4, "tokens": 512, "steps": 6}
SPLIT = {"rows": 2, "tokens": 128, "devices": ["cuda", "cpu"], "weights": "cpu"}
CARD_TESTS = "cuda or card or offload or split"
WORDS = {"bfloat16": "bf16", "int8": "int8", "nf4": "nf4"}


@dataclass(frozen=True)
class Part:
    """A measurement in a process of its own."""

    name: str
    work: str  # module:function
    options: dict = field(default_factory=dict)
    kind: str = "check"  # or step, decode
    warm: int = 0
    repeats: int = 1
    limit: float = 60  # seconds; a part is not begun when fewer than a third of them are left
    against: str = ""  # the part whose seconds it is compared with
    card: bool = False  # on the CPU it shows no more than that the code runs

    @property
    def is_peer(self) -> bool:
        return self.work.startswith("benchmarks.peer:")


def variant(part: Part, word: str, **more) -> Part:
    """The same with other options: `word` stands after the name."""
    name, o = f"{part.name} {word}", part.options | more
    return replace(part, name=name, options=o, against=part.name, card=True)


def compiled(part: Part) -> Part:
    return replace(variant(part, "compiled", compile=True), limit=100)


def step(model: str, adapter: str, stored: str = "bfloat16", block: bool = False) -> Part:
    o = options(model=model, adapter=adapter, checkpointing=block, **STEP)
    o |= {"quantize": "" if stored == "bfloat16" else stored}
    name, plain = (f"{model} {adapter} {w}{' block' * block}" for w in (WORDS[stored], "bf16"))
    against = plain if o["quantize"] else ""
    return Part(name, "benchmarks.ours:step", o, "step", warm=2, repeats=5, against=against)


def decode(batch: int, adapter: str = "", stored: str = "bfloat16") -> Part:
    o = options(model="llama-7b", batch=batch, **DECODE | {"adapter": adapter})
    o |= {"quantize": "" if stored == "bfloat16" else stored}
    name = f"decode batch {batch} {WORDS[stored]}{f' with {adapter}' * bool(adapter)}"
    plain = f"decode batch {batch} bf16"
    against = plain if name != plain else ""
    return Part(name, "benchmarks.ours:decode", o, "decode", warm=1, repeats=3, against=against)


def of_peer(part: Part) -> Part:
    """The same by transformers + peft."""
    work = part.work.replace("ours", "peer")
    return replace(part, name=f"{part.name} (peer)", work=work, against=part.name)


def both(part: Part) -> list[Part]:
    return [part, of_peer(part)]


def loop(name: str, work: str, **more) -> Part:
    o = {"model": "llama-7b", "layers": 4, **LOOP, **more}
    return Part(name, f"benchmarks.gpu_checks:{work}", o, card=True)


def parts() -> list[Part]:
    """All of them, for a card of 40 GB and more."""
    size = {"size": 8192, "copy": 2**32, "dtypes": ["bfloat16", "float16", "float32"]}
    tests = {"keyword": CARD_TESTS, "words": ["-n", "8"], "seconds": 100}
    models = [(f"pocket-{name}", 0) for name in POCKET.values()]
    models.append(("qwen3-0.6b", 2))  # heads of 128
    dtypes = ["float32", "bfloat16", "float16"]
    compared = {"models": models, "dtypes": dtypes, "tokens": 300}
    drawn = {"models": models, "tokens": 100, "new": 24}
    found = [
        Part("rates", "benchmarks.machine:rates", size, card=True),
        Part("CUDA tests", "benchmarks.gpu_checks:suite", tests, limit=120, card=True),
        Part("CUDA = CPU", "benchmarks.gpu_checks:parity", compared, limit=90, card=True),
        Part("graphs = plain", "benchmarks.gpu_checks:graphs", drawn, card=True),
    ]
    for adapter in ("lora", "parallel"):
        found += both(step("llama-7b", adapter))
    for adapter in ("lora", "parallel"):
        found += both(step("llama-7b", adapter, block=True))
    found += [*both(decode(1)), decode(8), decode(64)]
    found += [step("llama-7b", "lora", stored, block=True) for stored in ("int8", "nf4")]
    found.append(variant(decode(1), "without graphs", graphs=False))
    found.append(decode(1, "lora"))
    for stored in ("int8", "nf4"):
        part = decode(1, stored=stored)
        by_codes = variant(part, "by its codes", memory="plain")  # without copies
        found += [part, replace(by_codes, against=part.against)]
    found += [compiled(step("llama-7b", "lora")), compiled(decode(1)), compiled(decode(64))]
    found += [
        loop("float16 loss scaling", "scaled", steps=30),
        loop("layers on cuda and cpu", "alike", **SPLIT),
        loop("offload", "alike", train={"offload": True}),
        loop("plain run twice", "repeated"),
        loop("deterministic run twice", "repeated", train={"deterministic": True}),
    ]
    found += [step("llama-7b", "parallel", stored, block=True) for stored in ("int8", "nf4")]
    for family in FAMILIES[1:]:
        for adapter in ("lora", "parallel"):
            found += both(step(family, adapter))
        found += [step(family, "lora", stored) for stored in ("int8", "nf4")]
    found += [of_peer(decode(8)), of_peer(decode(64))]
    for family in FAMILIES[1:]:
        found += [step(family, "parallel", stored) for stored in ("int8", "nf4")]
    return found


TINY = {"rows": 2, "tokens": 12, "micro": 2, "batch": 2, "new": 3, "steps": 3, "layers": 0}
POCKET = dict(zip(FAMILIES, ("llama", "bloom", "opt", "gptj"), strict=True))


def tiny(part: Part, device: str) -> Part:
    """A part of a smoke run: the same work on the pocket models."""
    o = dict(part.options)
    for key, most in TINY.items():
        if key in o:
            o[key] = min(o[key], most)
    if "model" in o:
        o["model"] = f"pocket-{POCKET[o['model']]}"
    if "models" in o:
        o["models"] = o["models"][:2]
        o |= {"dtypes": ["float32", "bfloat16"]}
    if "size" in o:
        o |= {"size": 64, "copy": 2**16}
    if "keyword" in o:
        o["words"] = ["-n", "0", "--collect-only", "tests/train/test_memory.py"]
    if "devices" in o:
        o["devices"] = [device, "cpu"]
    if device == "cpu" and o.get("compile"):
        o["compile"] = False  # inductor needs a minute there
    return replace(part, options=o, warm=0, repeats=1)
