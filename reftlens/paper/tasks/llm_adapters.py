"""The files of LLM-Adapters (Hu et al. 2023, arXiv:2304.01933; Apache-2.0): `{instruction, input, output, answer}`.

They are on GitHub, at the commit below, in the repository that the reference implementation forked.
The test files of that commit have the paper's numbers of records. Downloads by URL, and the large
training files, are untested, since no network was available. A downloaded file is compared with its
checksum in the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reftlens.paper.tasks.records import Raw, read

PUBLISHED = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a"
"""The commit is from March 2024."""
_BLOBS = """
731fbb456f7a93bb4121125de09c4adcf42e5dab dataset/AQuA/test.json
9540685439144200b5a7e48dab9ca4655be2af09 dataset/ARC-Challenge/test.json
d7e080b04bff9fd16dd85455fb04481807a088d8 dataset/ARC-Challenge/train.json
6c0d30aaedaeca148df6bcd7aaacf7c31e6ad70f dataset/ARC-Easy/test.json
488a8e5e5bbbd7a630ebbfe07a1fd91b7d9d8c9b dataset/ARC-Easy/train.json
f3996cdf4159b4e1e4b6768865a4db72105f4e2f dataset/AddSub/test.json
08e996c6cd8c633cc977f5c50709a8bbfc8fadff dataset/MultiArith/test.json
98b8f1872db596f8aaff2c95d1d698a9fa13b94f dataset/SVAMP/test.json
cce7a868400323e30e2094a15d482c1aa743dbb0 dataset/SingleEq/test.json
6d7edb0a8e8a6566b546ccf0d98d24e48db3fdf3 dataset/boolq/test.json
87a7beee26b49f81c450641ef2ff84f55611321f dataset/boolq/train.json
57a7a08e10e12e975e1f972d2b8125c0d4c722b1 dataset/gsm8k/test.json
183c4920415f83ba4b793c4873a33e7e10bd1be5 dataset/hellaswag/test.json
ca68dc85fc2a2f73c9b1b8b0823cc41a8f669718 dataset/hellaswag/train.json
4395ded7d91bd4fb1192ba3981f6ef00ccc88570 dataset/mathqa/test.json
eca473c5b5d398acbae0b84ede833bbbccd63add dataset/mawps/test.json
a6e69676104bcb77237388c3b5a3f0dcbb81d1e2 dataset/openbookqa/test.json
75bcd5eb9f5e77a3796c05e6bb38f169d19563fc dataset/openbookqa/train.json
f7a1c260692ef31796d4763cb6334f316a754fed dataset/piqa/test.json
44326ba946f8bd645bfa7a189e619d29b5bc17e5 dataset/piqa/train.json
eadf221799ca394367b144c0f86ee0436db409d2 dataset/social_i_qa/test.json
bd524129d80efdfabc8476bbedc4f41b400cfda0 dataset/social_i_qa/train.json
21257263593dd4d00546e1918c88ca0f357b08ad dataset/winogrande/test.json
0b56375ac6b4464fa97abfb72812f15c772ba305 dataset/winogrande/train.json
3779ddbc040543ab1834ef216c983d6fcc06cc9a ft-training_set/alpaca_data.json
862cc5fac6f7bad3f16948117f5985c20349f481 ft-training_set/alpaca_data_cleaned.json
3716afef6d384c475dba13f88a5a96c8032dafe2 ft-training_set/commonsense_15k.json
529e426b33d4cdb1d0c4a275a1a7245ad081fd91 ft-training_set/commonsense_170k.json
27dba77d6ed80aa118d78fbafa5cecd651f6d463 ft-training_set/math_10k.json
7dc3a2312d83bd5cd6388ecd5d530f2ff6ed1ad6 ft-training_set/math_14k.json
61fcf3e08fc90a922be320441019d6022e25f5d0 ft-training_set/math_50k.json
fd93bf268b53bb644b38e71270cdf633951ba3e0 ft-training_set/math_7k.json
22a588e69121103120d4b5173f1a6ea804d15a44 ft-training_set/math_data.json
"""
"""Git's checksum (SHA-1) and the path of each file in that commit. A downloaded file must have its checksum."""


def read_split(
    name: str, split: str, *, splits: Sequence[str], source: str | Path | None = None, limit: int | None = None
) -> list[Raw]:
    """Loads the records of a task or training set, unchecked.

    Args:
        name: name of the task.
        split: one of `splits`.
        splits: the available splits. A set with only "train" is in `ft-training_set`.
        source: a file, a dataset on the hub, or a folder in this layout or the reference
            implementation's (`<task>/<split>.json`).
        limit: number of records to load, from the first; all by default.

    Raises:
        ValueError: If the split is unknown, or the file does not hold records.
        FileNotFoundError: If the source does not exist.
    """
    if split not in splits:
        raise ValueError(f"the split of {name} must be one of {', '.join(splits)}, got {split!r}")
    published = f"ft-training_set/{name}.json" if tuple(splits) == ("train",) else f"dataset/{name}/{split}.json"
    within = (f"{name}/{split}.json", f"{name}/{split}.jsonl", published)
    found = f"{PUBLISHED}/{published}" if source is None else source
    return read(found, within=within, split=split, limit=limit, blob=_blob(published) if source is None else None)


def _blob(path: str) -> str:
    for line in _BLOBS.split("\n"):
        if line.endswith(f" {path}"):
            return line.split()[0]
    raise ValueError(f"LLM-Adapters has no file {path}")
