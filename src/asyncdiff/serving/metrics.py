"""What the service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from asyncdiff.serving.orders import Drawn

# Seconds: a step of a small model, and a picture of a large one.
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    """The service's figures.

    Attributes:
        requests: answers by HTTP status; 499 where the client had gone away.
        waiting: requests that wait for a replica.
        replicas: how many are in each state.
        losses: how often a replica was lost while it drew.
    """

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("asyncdiff_requests", "Requests for pictures, by status", ["status"], registry=own)
        self.waiting = Gauge("asyncdiff_requests_waiting", "Requests that wait for a replica", registry=own)
        self.replicas = Gauge("asyncdiff_replicas", "Replicas, by state", ["state"], registry=own)
        self.losses = Counter("asyncdiff_replica_losses", "Times that a replica was lost as it drew", registry=own)
        self._total = Histogram(
            "asyncdiff_request_seconds", "From a request's arrival to its answer", buckets=_SECONDS, registry=own
        )
        self._drawing = Histogram(
            "asyncdiff_drawing_seconds", "Seconds in which a request was drawn", buckets=_SECONDS, registry=own
        )
        self._pictures = Counter("asyncdiff_pictures", "Pictures and videos that were drawn", registry=own)
        self._steps = Counter("asyncdiff_steps", "Denoiser calls, by kind", ["kind"], registry=own)
        self._sent = Counter("asyncdiff_sent_bytes", "Bytes that rank 0 has sent to other ranks", registry=own)
        self._answered = Counter("asyncdiff_picture_bytes", "Bytes of what was drawn", registry=own)

    def count_request(self, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(str(status)).inc()
        self._total.observe(seconds)

    def count_drawn(self, drawn: Drawn) -> None:
        """Something was drawn."""
        self._drawing.observe(drawn.seconds)
        self._pictures.inc(len(drawn.files))
        self._sent.inc(drawn.bytes_sent)
        self._answered.inc(sum(map(len, drawn.files)))
        for kind, count in drawn.steps.items():
            self._steps.labels(kind).inc(count)

    def as_text(self) -> bytes:
        """In Prometheus's own format."""
        return generate_latest(self._registry)
