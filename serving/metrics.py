"""What Prometheus reads at `/metrics`: requests, batches, the bundle that answers, what was refused."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.admission import Admission
from serving.follow import Follower
from serving.retriever import QueryError
from serving.search import Answer
from serving.store import made_at

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)


class Queue(Protocol):
    """Whatever searches wait in."""

    @property
    def depth(self) -> int:
        """How many wait."""


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._histogram(
            "twotower_request_seconds", "Time from a request's head to its last byte.", ("route", "status")
        )
        self._encode = self._histogram("twotower_encode_seconds", "Time for query vectors, per search.")
        self._search = self._histogram("twotower_search_seconds", "Time in the index, per search.")
        self._batches = Histogram(
            "twotower_batch_size", "Searches answered together.", registry=self.registry, buckets=_SIZES
        )
        self._refusals = self._counter("twotower_refusals", "Requests refused, by reason.", "reason")
        self._errors = self._counter("twotower_errors", "Requests that met a defect, by route.", "route")
        self.events = self._counter(
            "twotower_events", "Events taken, by action and query.", "action", "query"
        )
        self.log_lines = self._counter("twotower_query_log_lines", "Lines of the query log.", "outcome")

    def request_done(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered or given up."""
        self._requests.labels(route, status).observe(seconds)
        if status == 500:
            self._errors.labels(route).inc()

    def batch_done(self, answers: Sequence[Answer | QueryError]) -> None:
        """Count a batch and what it took."""
        self._batches.observe(len(answers))
        for answer in answers:
            if isinstance(answer, Answer):
                self._encode.observe(answer.encode_ms / 1e3)
                self._search.observe(answer.search_ms / 1e3)

    def refused(self, reason: str) -> None:
        """Count a request that was refused before or instead of an answer; `reason` is the error's code."""
        self._refusals.labels(reason).inc()

    def watch(self, follower: Follower, queue: Queue, admission: Admission) -> None:
        """Read from now on what changes by itself, whenever somebody asks."""
        self.registry.register(_State(follower, queue, admission))

    def exposition(self) -> bytes:
        """Return everything as Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, labels: Iterable[str] = ()) -> Histogram:
        return Histogram(name, text, tuple(labels), registry=self.registry, buckets=_SECONDS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class _State(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, follower: Follower, queue: Queue, admission: Admission) -> None:
        self._follower = follower
        self._queue = queue
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Return the present state."""
        yield _gauge("twotower_queue_depth", "Searches that wait for a worker.", self._queue.depth)
        yield _gauge(
            "twotower_requests_in_flight", "Admitted requests being answered.", self._admission.in_flight
        )
        refusal = self._follower.refusal
        yield _gauge(
            "twotower_champion_refused", "1 while the champion could not be loaded.", refusal is not None
        )
        yield CounterMetricFamily("twotower_swaps", "Bundles swapped in.", float(self._follower.swaps))
        served = self._follower.served
        yield _gauge("twotower_ready", "1 while a checked bundle answers.", served is not None)
        if served is None:
            return
        opened = served.retriever.bundle
        yield InfoMetricFamily("twotower_bundle", "The bundle that answers.", {"bundle_id": opened.bundle_id})
        yield _gauge(
            "twotower_bundle_documents", "Documents of the bundle that answers.", len(opened.doc_ids)
        )
        with suppress(KeyError, ValueError, TypeError):
            age = time.time() - made_at(opened.artifact.content)
            yield _gauge("twotower_bundle_age_seconds", "Time since the bundle was made.", age)


class _Merged(Collector):
    """The metrics of several processes, each series with a label `process`."""

    def __init__(self, expositions: Mapping[int, bytes]) -> None:
        self._families: dict[str, Metric] = {}
        answered = 0
        for place, text in sorted(expositions.items()):
            try:
                families = list(text_string_to_metric_families(text.decode()))
            except ValueError:  # one that cannot be read is as one that did not answer
                continue
            answered += 1
            for family in families:
                self._add(family, str(place))
        name = "twotower_processes"
        self._families[name] = _gauge(name, "Server processes that take requests.", answered)

    def collect(self) -> Iterator[Metric]:
        """Return every family once."""
        yield from self._families.values()

    def _add(self, family: Metric, place: str) -> None:
        known = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        known.samples += [
            sample._replace(labels={**sample.labels, "process": place}) for sample in family.samples
        ]


def merged(expositions: Mapping[int, bytes]) -> bytes:
    """Return one exposition of several processes' ones.

    Args:
        expositions: By place, in Prometheus' text format; one that is no such text is left out.
    """
    return generate_latest(_Merged(expositions))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, float(value))
