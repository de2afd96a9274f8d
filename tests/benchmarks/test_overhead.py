"""What every request pays beside the model's work."""

import inspect
import socket

from refine_server.benchmarks.serving import overhead_servers
from refine_server.server.http import dependencies
from refine_server.server.process import listen


def test_no_dependency_is_called_in_a_thread_of_its_own() -> None:
    functions = [f for _, f in inspect.getmembers(dependencies, inspect.isfunction)]
    ours = [f for f in functions if f.__module__ == dependencies.__name__]
    assert ours
    assert all(map(inspect.iscoroutinefunction, ours))


def test_connections_send_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_both_sides_answer_the_same_clients() -> None:
    result = overhead_servers.run(clients=3, rate=100.0, requests=50, repeats=1)
    assert result["echo_p50_ms"] > 0
    for percentile in ("p50", "p99"):
        more = result[f"ours_{percentile}_ms"] - result[f"echo_{percentile}_ms"]
        assert result[f"more_{percentile}_ms"] == more
