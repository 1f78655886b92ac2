"""Which indexes an automatic choice considers for a corpus, and how much each will hold, before any is built.

Shapes: N documents, D embedding.
"""

import math
from dataclasses import dataclass

SMALL = 10_000
"""Below this many documents a full scan takes microseconds, and there are too few to train lists on."""

_LISTS_PER_ROOT = 4  # lists = 4 √N, the middle of what faiss's guidelines advise
_POINTS_PER_LIST = 39  # below this faiss calls a list badly trained
_LINKS = 32


@dataclass(frozen=True)
class Candidate:
    """A faiss factory string and what it would hold.

    Attributes:
        factory: The factory string.
        size: Estimated bytes of the index file, which is also what it holds in memory.
        graph: Whether building it means linking every document, ten times the work of inverted lists.
    """

    factory: str
    size: int
    graph: bool = False


@dataclass(frozen=True)
class LeftOut:
    """A family that was not measured on the corpus, and why."""

    factory: str
    reason: str


def candidates(
    count: int, dimension: int, memory: int | None, device: str
) -> tuple[list[Candidate], list[LeftOut]]:
    """Return what to build and measure, simplest first, and what does not fit.

    A more compact variant of a family is considered only where its exact form exceeds `memory`: what it
    stores is coarser and it is no faster.

    Args:
        count: N.
        dimension: D.
        memory: Largest index, in bytes; None is no limit.
        device: As `serving.devices.best_device`; a GPU has no graph by insertion, refinement or fast scan.
    """
    kept: list[Candidate] = []
    out: list[LeftOut] = []
    for variants in _families(count, dimension, device):
        for candidate in variants:
            if memory is None or candidate.size <= memory:
                kept.append(candidate)
                break
            out.append(LeftOut(candidate.factory, f"about {shown_size(candidate.size)}, over index.memory"))
    return list({candidate.factory: candidate for candidate in kept}.values()), out


def lists_for(count: int) -> int:
    """Return the number of inverted lists for N documents: a power of two near 4 √N, none thinly filled."""
    wanted = round(math.log2(_LISTS_PER_ROOT * math.sqrt(count)))
    return int(2 ** min(wanted, int(math.log2(max(1, count // _POINTS_PER_LIST)))))


def shown_size(size: int) -> str:
    """Return bytes as people read them: `760 bytes`, `18.4 kB`, `27.2 MB`, `1,024 MB`."""
    for unit, of in (("MB", 1_000_000), ("kB", 1_000)):
        if size >= of:
            return f"{size / of:,.{0 if size >= 100 * of else 1}f} {unit}"
    return f"{size:,} bytes" if size != 1 else "1 byte"


def _families(count: int, dimension: int, device: str) -> list[list[Candidate]]:
    """Return the families, each as its variants from exact to compact."""
    exact, byte = 4 * count * dimension, count * dimension
    flat = [Candidate("Flat", exact), Candidate("SQ8", byte)]
    if count < SMALL:
        return [flat]
    lists = lists_for(count)
    ids = 8 * count + 4 * lists * dimension
    ivf = f"IVF{lists}"
    families = [flat, [Candidate(f"{ivf},Flat", exact + ids)], [Candidate(f"{ivf},SQ8", byte + ids)]]
    if device == "cagra":
        families.append([Candidate(f"CAGRA{_LINKS}", exact + 4 * _LINKS * count + 16 * count)])
    if device != "cpu":
        return families
    families.append([Candidate(f"{ivf},SQ8,RFlat", byte + ids + exact)])
    if dimension % 2 == 0:
        scan = f"{ivf},PQ{dimension // 2}x4fsr"
        codes = (count + 16 * lists) * dimension // 4 + ids  # lists are padded to blocks of 32
        families.append(
            [
                Candidate(f"{scan},RFlat", codes + exact),
                Candidate(f"{scan},Refine(SQ8)", codes + byte),
                Candidate(scan, codes),
            ]
        )
    links = count * (4 * 2 * _LINKS + 16)
    families.append([Candidate(f"HNSW{_LINKS}", exact + links, graph=True)])
    return families
