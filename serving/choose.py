"""Choosing an index by measurement: the cheapest setting, of any family that fits, with the recall asked for.

Every candidate that fits `index.memory` is built and its settings are measured on held-out queries: ANN
recall@k, and time a query on one thread in batches of 32. Cheapest is what takes least time. A challenger
replaces the incumbent, which comes earlier in the order of `serving.candidates` and is simpler, only if
it is more than 10% faster when the two are timed in turns: timings of equals do not decide.

Shapes: B queries, N documents, D embedding.
"""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from features.errors import ConfigError
from serving.build import IndexConfig, SharedLists, build
from serving.candidates import Candidate, LeftOut, candidates
from serving.curve import Curve, Setting
from serving.devices import best_device
from serving.index import Index, SearchEngine
from serving.milvus import MilvusIndex
from serving.tune import Parameters, Reading, Yardstick, quiet, tune
from serving.vectors import Vectors, check_similarity

_TIE = 1.10
_HOPELESS = 3.0  # times slower at first sight: not timed again
_ROUNDS = 5
_SAMPLES = (5_000, 20_000)  # documents that a graph is tried on before all are linked


@dataclass(frozen=True)
class Choice:
    """An index, set as chosen, and why.

    Attributes:
        index: Built and set.
        factory: Its faiss factory string, or Milvus's type of index.
        parameters: Every search parameter that is set; a bundle restores them on load.
        ann_recall: ANN recall@k at these parameters on the tuning queries.
        met: Whether the target was reached; None where none was asked for.
        curve: Everything measured; None where no target was asked for.
        note: The choice in one sentence.
    """

    index: SearchEngine
    factory: str
    parameters: Parameters
    ann_recall: float
    met: bool | None
    curve: Curve | None
    note: str


@dataclass
class _Contest:
    """What has been measured so far, and who leads."""

    yardstick: Yardstick
    target: float
    settings: list[Setting] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    index: Index | None = None
    reading: Reading | None = None
    chosen: int = -1

    @property
    def met(self) -> bool:
        """Whether the leader has the target."""
        return self.reading is not None and self.reading.ann_recall >= self.target

    @property
    def limit_us(self) -> float:
        """Microseconds a query that a challenger has to beat."""
        return self.reading.batch_us if self.reading is not None and self.met else float("inf")

    def enter(self, factory: str, index: Index, fixed: Parameters, seconds: float) -> None:
        """Tune an index, record its settings, and let its best one challenge the leader."""
        readings = tune(index, self.yardstick, self.target, fixed, self.limit_us)
        megabytes = index.stored_bytes / 1e6
        start = len(self.settings)
        self.settings += [_setting(factory, reading, megabytes, seconds) for reading in readings]
        best = _best(readings, self.target)
        index.set_parameters(readings[best].parameters)
        if self._beats(index, readings[best], start + best):
            self.index, self.chosen = index, start + best
            self.reading = replace(
                readings[best], batch_us=1e6 / self.settings[self.chosen].queries_per_second
            )

    def look_beyond(self) -> None:
        """Record what the chosen index would give at twice and four times the effort, for the curve."""
        if self.index is None or self.reading is None or self.index.tunable not in self.reading.parameters:
            return
        name, chosen = self.index.tunable, self.settings[self.chosen]
        for times in (2, 4):
            effort = min(times * self.reading.parameters[name], self.index.largest_setting)
            reading = self.yardstick.read(self.index, {**self.reading.parameters, name: effort})
            self.settings.append(_setting(chosen.factory, reading, chosen.megabytes, chosen.build_seconds))
        self.index.set_parameters(self.reading.parameters)

    def _beats(self, index: Index, challenger: Reading, place: int) -> bool:
        if self.index is None or self.reading is None:
            return True
        meets = challenger.ann_recall >= self.target
        if meets != self.met:
            return meets
        if not meets:
            return challenger.ann_recall > self.reading.ann_recall
        if challenger.batch_us > _HOPELESS * self.reading.batch_us:
            return False
        ours, theirs = self._in_turns(self.index, index)
        self._retime(self.chosen, ours)
        self._retime(place, theirs)
        self.reading = replace(self.reading, batch_us=ours)
        return ours > _TIE * theirs

    def _in_turns(self, leader: Index, challenger: Index) -> tuple[float, float]:
        """Return microseconds a query of both, taken in turns, so that what else runs slows both alike."""
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(_ROUNDS):
            for index, taken in zip((leader, challenger), times, strict=True):
                taken += self.yardstick.batches(index)
        return quiet(times[0]), quiet(times[1])

    def _retime(self, place: int, batch_us: float) -> None:
        self.settings[place] = replace(self.settings[place], queries_per_second=1e6 / batch_us)


def choose(document_ND: Vectors, query_BD: Vectors, config: IndexConfig, similarity: str) -> Choice:
    """Build the index that is configured or, where that is a target only, the cheapest that has it.

    Args:
        document_ND: The catalogue.
        query_BD: Held-out queries to measure on; at least one.
        config: `index` of the configuration.
        similarity: What the vectors were trained for.

    Raises:
        ConfigError: If the index cannot be built as configured, or nothing fits `index.memory`.
        BundleError: If the vectors are not what `similarity` promises.
    """
    yardstick = Yardstick(query_BD, document_ND, config.k)
    if config.target_recall is None:
        index, _ = _built(document_ND, config, similarity)
        _check_memory(index, config)
        recall = yardstick.recall(index)
        note = f"{config.named_factory} as configured; no index.target_recall, so nothing was tuned"
        return Choice(index, config.named_factory, dict(config.search), recall, None, None, note)
    contest = _Contest(yardstick, config.target_recall)
    if config.automatic:
        _compare(contest, document_ND, config, similarity)
    else:
        index, seconds = _built(document_ND, config, similarity)
        _check_memory(index, config)
        contest.enter(config.named_factory, index, dict(config.search), seconds)
    return _conclude(contest, config)


def store_in_milvus(
    document_ND: Vectors, documents: pd.DataFrame, query_BD: Vectors, config: IndexConfig, similarity: str
) -> Choice:
    """Put the vectors into Milvus as configured and measure its ANN recall; nothing there is tuned.

    Raises:
        ConfigError: If Milvus cannot be reached or refuses the index.
        BundleError: If the vectors are not what `similarity` promises.
    """
    if config.milvus is None:
        raise ValueError("index.milvus is not set")
    check_similarity(document_ND, similarity)
    index = MilvusIndex.create(document_ND, documents, config.milvus)
    recall = Yardstick(query_BD, document_ND, config.k).recall(index)
    met = None if config.target_recall is None else recall >= config.target_recall
    factory = f"Milvus {config.milvus.index_type}"
    reached = f"ANN recall@{min(config.k, index.size)} {recall:.4f} on {len(query_BD):,} tuning queries"
    note = f"{factory} as configured, which nothing tunes; {reached}"
    return Choice(index, factory, {}, recall, met, None, note)


def _compare(contest: _Contest, document_ND: Vectors, config: IndexConfig, similarity: str) -> None:
    """Let every candidate that fits enter the contest."""
    count, dimension = document_ND.shape
    fitting, contest.left_out = candidates(count, dimension, config.memory, best_device(config.device))
    if not fitting:
        raise ConfigError(
            f"index.memory {config.memory:,} bytes holds no index of {count:,} × {dimension}: "
            + "; ".join(f"{left.factory} {left.reason}" for left in contest.left_out)
            + "; raise it or lower towers.dimension"
        )
    shared = SharedLists()
    for candidate in fitting:
        reason = _hopeless(candidate, contest, document_ND, config, similarity)
        if reason is None:
            named = config.model_copy(update={"factory": candidate.factory})
            index, seconds = _built(document_ND, named, similarity, shared)
            contest.enter(candidate.factory, index, {}, seconds)
        else:
            contest.left_out.append(LeftOut(candidate.factory, reason))


def _hopeless(
    candidate: Candidate, contest: _Contest, document_ND: Vectors, config: IndexConfig, similarity: str
) -> str | None:
    """Return why a graph over all documents cannot be expected to win; None where it may.

    A graph takes ten times as long to build as lists do. The time that a query takes to reach the target
    grows with the logarithm of the number of documents, so two graphs over samples tell that of the whole.
    """
    count = len(document_ND)
    if not candidate.graph or count <= 2 * _SAMPLES[1] or not contest.met:
        return None
    named = config.model_copy(update={"factory": candidate.factory})
    times = []
    for size in _SAMPLES:
        sample_ND = np.ascontiguousarray(document_ND[:: count // size])
        yardstick = Yardstick(contest.yardstick.query_BD, sample_ND, config.k)
        readings = tune(build(sample_ND, named, similarity), yardstick, contest.target, {})
        best = readings[_best(readings, contest.target)]
        if best.ann_recall < contest.target:
            return (
                f"over {len(sample_ND):,} documents already it has ANN recall {best.ann_recall:.3f} at most"
            )
        times.append(best.batch_us)
    growth = max(0.0, times[1] - times[0]) / math.log(_SAMPLES[1] / _SAMPLES[0])
    expected = times[1] + growth * math.log(count / _SAMPLES[1])
    if _TIE * expected < contest.limit_us:
        return None
    small, large = _SAMPLES
    return (
        f"over {small:,} and {large:,} documents it takes {times[0]:,.0f} and {times[1]:,.0f} µs a query, "
        f"over all about {expected:,.0f}; the best before it takes {contest.limit_us:,.0f}"
    )


def _conclude(contest: _Contest, config: IndexConfig) -> Choice:
    if contest.index is None or contest.reading is None:
        raise ValueError("no index was measured")
    contest.look_beyond()
    yardstick, reading = contest.yardstick, contest.reading
    curve = Curve(
        target=contest.target,
        k=min(config.k, len(yardstick.document_ND)),
        queries=len(yardstick.query_BD),
        settings=contest.settings,
        chosen=contest.chosen,
        left_out=contest.left_out,
    )
    factory = contest.settings[contest.chosen].factory
    reached = f"ANN recall@{curve.k} {reading.ann_recall:.4f} on {curve.queries:,} tuning queries"
    if contest.met:
        note = f"{factory} is the cheapest measured with index.target_recall {contest.target:g}; {reached}"
    else:
        note = (
            f"no setting reaches index.target_recall {contest.target:g}; {factory} comes closest, {reached}; "
            f"{_what_helps(contest, config)}"
        )
    return Choice(contest.index, factory, reading.parameters, reading.ann_recall, contest.met, curve, note)


def _what_helps(contest: _Contest, config: IndexConfig) -> str:
    """Return advice on a target that was not reached: only what is set, and may help, is named."""
    advice = ["lower the target"]
    if config.automatic and contest.left_out:
        advice.insert(0, "raise index.memory")
    if config.factory is not None:
        advice.insert(0, "remove index.factory to have one chosen")
        if config.search:
            advice.insert(0, "remove index.search to have it tuned")
    return " or ".join(advice)


def _built(
    document_ND: Vectors, config: IndexConfig, similarity: str, shared: SharedLists | None = None
) -> tuple[Index, float]:
    start = time.perf_counter()
    before = 0.0 if shared is None else shared.seconds
    index = build(document_ND, config, similarity, shared)
    return index, time.perf_counter() - start + before


def _check_memory(index: Index, config: IndexConfig) -> None:
    if config.memory is not None and index.stored_bytes > config.memory:
        raise ConfigError(
            f"index.factory {config.named_factory!r} takes {index.stored_bytes:,} bytes, over index.memory "
            f"{config.memory:,}; raise it, or remove index.factory to have one chosen that fits"
        )


def _best(readings: list[Reading], target: float) -> int:
    """Return the place of the fastest reading with the target, else of the highest recall."""

    def rank(place: int) -> tuple[bool, float, float]:
        reading = readings[place]
        met = reading.ann_recall >= target
        return met, 0.0 if met else reading.ann_recall, -reading.batch_us

    return max(range(len(readings)), key=rank)


def _setting(factory: str, reading: Reading, megabytes: float, seconds: float) -> Setting:
    return Setting(
        factory=factory,
        parameters={str(name): value for name, value in reading.parameters.items()},
        ann_recall=reading.ann_recall,
        queries_per_second=1e6 / reading.batch_us,
        p50_us=reading.p50_us,
        megabytes=megabytes,
        build_seconds=seconds,
    )
