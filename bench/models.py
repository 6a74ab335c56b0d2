"""The shapes of models that people train."""

from collections.abc import Iterator

Shape = tuple[int, ...]


def mlp() -> Iterator[Shape]:
    """A classifier of digits: 784-512-512-10."""
    for into, out in ((784, 512), (512, 512), (512, 10)):
        yield from ((into, out), (out,))


def resnet50() -> Iterator[Shape]:
    """ResNet-50 (He et al. 2015): each convolution has a batch norm with scale and shift."""

    def convolution(out: int, into: int, size: int) -> Iterator[Shape]:
        yield from ((out, into, size, size), (out,), (out,))

    yield from convolution(64, 3, 7)
    into = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:  # the shortcut changes width
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from ((1000, into), (1000,))


def gpt2() -> Iterator[Shape]:
    """GPT-2 with 124 M parameters (Radford et al. 2019); the output shares the embedding."""
    width = 768
    norm = [(width,), (width,)]

    def dense(into: int, out: int) -> list[Shape]:
        return [(into, out), (out,)]

    yield from ((50257, width), (1024, width))
    for _ in range(12):
        yield from (*norm, *dense(width, 3 * width), *dense(width, width))
        yield from (*norm, *dense(width, 4 * width), *dense(4 * width, width))
    yield from norm


def llama_1b() -> Iterator[Shape]:
    """A Llama with 1.1 billion parameters, TinyLlama's sizes (Zhang et al. 2024): 22 layers, 4 key heads."""
    width, hidden, keys, vocabulary = 2048, 5632, 256, 32000
    yield (vocabulary, width)
    for _ in range(22):
        yield from ((width, width), (keys, width), (keys, width), (width, width))
        yield from ((hidden, width), (hidden, width), (width, hidden), (width,), (width,))
    yield from ((width,), (vocabulary, width))


def embedding() -> Iterator[Shape]:
    """A table of words, for steps that touch some of its rows."""
    yield (50257, 256)


MODELS: dict[str, list[Shape]] = {
    "mlp": list(mlp()),
    "resnet50": list(resnet50()),
    "gpt2": list(gpt2()),
    "llama1b": list(llama_1b()),
    "embedding": list(embedding()),
}
