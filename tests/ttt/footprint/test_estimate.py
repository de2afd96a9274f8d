"""Requests get their prediction without waiting for measurements that they do not need."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from refine_server.ttt.footprint import estimate
from refine_server.ttt.footprint.estimate import PeakEstimator
from refine_server.ttt.footprint.peaks import adaptation_peak
from refine_server.ttt.interface.config import AdaptConfig
from support.small_models import Families


def test_a_request_that_does_not_adapt_waits_for_no_measurement_of_adaptations(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def measure_when_told(*args: Any) -> Any:
        begun.set()
        assert end.wait(60)
        return adaptation_peak(*args)

    monkeypatch.setattr(estimate, "adaptation_peak", measure_when_told)
    estimator = PeakEstimator(families["delta_net"](torch.float32))
    with ThreadPoolExecutor(2) as threads:
        adapting = threads.submit(estimator.adaptation, 100, AdaptConfig())
        assert begun.wait(60)
        reading = threads.submit(estimator.adaptation, 100, AdaptConfig(objective="none"))
        read_bytes = reading.result(60)
        assert not adapting.done()
        end.set()
        assert adapting.result(60) > read_bytes > 0
