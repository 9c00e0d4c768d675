"""Counters and gauges at /metrics. Numbers only: no device names, no keys."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One server's numbers, in a registry of their own so that two servers fit in one process."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = CollectorRegistry()
        self.exchanges = Counter(
            "edgeseal_x1_exchanges", "X1 exchanges by outcome.", ["outcome"], registry=self._registry
        )
        self.exchange_seconds = Histogram(
            "edgeseal_x1_seconds",
            "Time inside the session code, its group's flush included.",
            registry=self._registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0),
        )
        self.group_size = Histogram(
            "edgeseal_x1_group_size",
            "X1 requests that shared one flush.",
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.requests = Counter(
            "edgeseal_http_requests", "Requests by part and status class.", ["part", "status"], registry=self._registry
        )
        self.uploaded = Counter("edgeseal_uploaded_bytes", "Object bytes received.", registry=self._registry)
        self.publications = Counter("edgeseal_publications", "Publications accepted.", registry=self._registry)
        self.timestamp_expiry = Gauge(
            "edgeseal_timestamp_expiry_seconds", "Unix time at which timestamp.json expires.", registry=self._registry
        )
        self.noise_sources = Gauge(
            "edgeseal_noise_sources",
            "Noise sources of devices by state, as last reported; without revoked devices.",
            ["state"],
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)
