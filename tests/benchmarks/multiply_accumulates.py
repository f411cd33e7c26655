"""Counts the multiply-accumulates of VANBackbone; checks them against the published classifiers.

python -m tests.benchmarks.multiply_accumulates
"""

# Of the classifiers at 224 x 224, 1000 classes. The paper: 0.9, 2.5, 5.0, 9.0, 12.2, 17.2 and 38.9 G.
CLASSIFIERS = {
    "b0": 864_224_000,
    "b1": 2_495_262_720,
    "b2": 4_992_773_120,
    "b3": 8_925_292_032,
    "b4": 12_143_756_288,
    "b5": 17_129_123_328,
    "b6": 38_710_096_896,
}


def count_multiply_accumulates(backbone, image_size):
    """Returns the multiply-accumulates of a forward pass over one image: those of its convolutions."""
    from van_backbones.summary import summarize

    return sum(part.multiply_accumulates for part in summarize(backbone, image_size))


def check_against_published(backbone):
    """Raises an error if the classifier on a backbone does not have the published number."""
    found = count_multiply_accumulates(backbone, (224, 224)) + backbone.widths[-1] * 1000
    expected = CLASSIFIERS[backbone.variant]
    if found != expected:
        raise AssertionError(f"{backbone.variant}: counted {found:,}, published {expected:,}")


def main():
    from van_backbones import VANBackbone

    for variant in CLASSIFIERS:
        check_against_published(VANBackbone(variant))
        print(f"{variant}: {CLASSIFIERS[variant]:,} at 224 x 224, 1000 classes, as published")


if __name__ == "__main__":
    main()
