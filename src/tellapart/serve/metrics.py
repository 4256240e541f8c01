"""What the service counts, for Prometheus. Owner of prometheus-client.

Labels take few values: route patterns, names of models and of their classes. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "tellapart_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "tellapart_request_seconds", "Time from a request's head to its answer", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._refusals = Counter("tellapart_refusals", "Requests refused", ["code"], registry=registry)
        self.in_flight = Gauge(
            "tellapart_requests_in_flight", "Requests being read or computed", registry=registry
        )
        self._bodies = Gauge("tellapart_body_bytes", "Bytes of request bodies in memory", registry=registry)
        self._batch = Histogram(
            "tellapart_batch_images", "Images computed at once", ["model"], buckets=_IMAGES, registry=registry
        )
        self._compute = Histogram(
            "tellapart_batch_seconds",
            "Time to compute a batch",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._waited = Histogram(
            "tellapart_queue_seconds", "Time that images waited to be computed", ["model"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._queue = Gauge("tellapart_queue_images", "Images waiting now", ["model"], registry=registry)
        self._answers = Counter(
            "tellapart_predictions", "Answers by their most probable class", ["model", "label"],
            registry=registry,
        )  # fmt: skip
        self._version = Gauge(
            "tellapart_model_version", "How often the model was loaded", ["model"], registry=registry
        )
        self._failures = Counter(
            "tellapart_reload_failures", "New files that could not be loaded", ["model"], registry=registry
        )
        self._drift = Gauge(
            "tellapart_class_drift",
            "Share of the latest answers that would have to change for the expected class mix (0 to 1)",
            ["model"], registry=registry,
        )  # fmt: skip
        self._drift_chance = Gauge(
            "tellapart_class_drift_by_chance", "The drift that chance alone gives on average for as many answers",
            ["model"], registry=registry,
        )  # fmt: skip
        self._reference = Gauge(
            "tellapart_class_mix_expected", "Expected share of answers by class", ["model", "label", "source"],
            registry=registry,
        )  # fmt: skip

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, code: str) -> None:
        """Count a refusal by its code."""
        self._refusals.labels(code).inc()

    def holds(self, bytes_held: Callable[[], float]) -> None:
        """Read the bytes of bodies from a function."""
        self._bodies.set_function(bytes_held)

    def for_model(self, name: str) -> ModelMetrics:
        """Return the counters of one model."""
        return ModelMetrics(self, name)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        text: bytes = generate_latest(self.registry)
        return text


class ModelMetrics:
    """Counters of one model; `batch` may be called from any thread."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._all, self._name = metrics, name
        self._images = metrics._batch.labels(name)
        self._seconds = metrics._compute.labels(name)
        self._waited = metrics._waited.labels(name)
        self.images = self.batches = 0
        self.compute_seconds = self.queue_seconds = 0.0
        self._expected: list[tuple[str, str]] = []

    def batch(self, images: int, waited: list[float], seconds: float) -> None:
        """Count a batch, how long its requests waited and how long it took."""
        self._images.observe(images)
        self._seconds.observe(seconds)
        for wait in waited:
            self._waited.observe(wait)
        self.images += images
        self.batches += 1
        self.compute_seconds += seconds
        self.queue_seconds += sum(waited)

    def waiting(self, count: Callable[[], float]) -> None:
        """Read the images that wait from a function."""
        self._all._queue.labels(self._name).set_function(count)

    def answered(self, label: str) -> None:
        """Count an answer."""
        self._all._answers.labels(self._name, label).inc()

    def loaded(self, version: int) -> None:
        """Record the version in use from now on."""
        self._all._version.labels(self._name).set(version)

    def reload_failed(self) -> None:
        """Count a file that could not be loaded."""
        self._all._failures.labels(self._name).inc()

    def drift(self, value: Callable[[], float], by_chance: Callable[[], float]) -> None:
        """Read the drift from functions."""
        self._all._drift.labels(self._name).set_function(value)
        self._all._drift_chance.labels(self._name).set_function(by_chance)

    def expects(self, shares: dict[str, float], source: str) -> None:
        """Record the expected class mix and its source; an earlier one is removed."""
        for old in self._expected:
            self._all._reference.remove(self._name, *old)
        self._expected = [(label, source) for label in shares]
        for label, share in shares.items():
            self._all._reference.labels(self._name, label, source).set(share)
