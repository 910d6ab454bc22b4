"""What a scrape of exec pools gets, through a registry of prometheus-client."""

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from sample_stats import BUSY, pool_stats, signature

from graphkit.pool_metrics import PoolCollector
from graphkit.pool_policy import Reason, Step
from graphkit.pool_stats import PoolMemory, StepStats


class Pool:
    """Anything that counts."""

    def __init__(self, stats):
        self.now = stats
        self.asked = 0

    def stats(self):
        self.asked += 1
        return self.now


@pytest.fixture
def registry():
    return pytest.importorskip("prometheus_client").CollectorRegistry(auto_describe=True)


@pytest.fixture
def pools():
    return {"decode": Pool(BUSY)}


@pytest.fixture
def value(registry, pools):
    """One sample of the pool `decode`, scraped now; None when there is none."""
    registry.register(PoolCollector(pools))

    def scrape(name, pool="decode", **labels):
        return registry.get_sample_value(f"graphkit_pool_{name}", {"pool": pool, **labels})

    return scrape


def test_counters(value):
    assert value("requests_total") == 1000
    assert value("hits_total") == 960
    assert value("captures_total") == 10
    assert value("capture_failures_total") == 3
    assert value("evictions_total") == 2
    assert value("elements_total") == 75_000
    assert value("padded_elements_total") == 100_000
    assert value("fallbacks_total", reason="over_max") == 10
    assert value("updates_total", how="nodes") == 50
    assert value("updates_total", how="refused") == 1
    assert value("steps_total", step="launch", phase="request") == 900
    assert value("steps_total", step="capture", phase="warm") == 5
    assert value("step_seconds_total", step="capture", phase="request") == pytest.approx(0.05)
    assert value("step_seconds_total", step="capture", phase="warm") == pytest.approx(1.5)


def test_gauges(value):
    assert value("memory_bytes", part="arenas") == 1 << 20
    assert value("memory_bytes", part="execs") == 3 << 20
    assert value("memory_bytes", part="graphs") == 512
    assert value("memory_budget_bytes") == 16 << 20
    assert value("hit_ratio") == 0.96
    assert value("padding_ratio") == 0.25


def test_what_did_not_happen_yet_is_zero_and_not_absent(value, pools):
    pools["decode"].now = pool_stats()
    assert {value("fallbacks_total", reason=reason.value) for reason in Reason} == {0}
    assert {value("updates_total", how=how) for how in ("nodes", "update", "refused")} == {0}
    for phase in ("request", "warm"):
        assert {value("steps_total", step=step.value, phase=phase) for step in Step} == {0}
    assert value("requests_total") == value("hit_ratio") == value("padding_ratio") == 0


def test_no_budget_is_no_sample(value, pools):
    pools["decode"].now = pool_stats(memory=PoolMemory(1, 2, 3, budget=None))
    assert value("memory_bytes", part="graphs") == 3
    assert value("memory_budget_bytes") is None


def test_the_exposition_keeps_to_the_conventions(registry, pools):
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    registry.register(PoolCollector(pools))
    families = [*text_string_to_metric_families(generate_latest(registry).decode())]
    assert families
    for family in families:
        assert family.name.startswith("graphkit_pool_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge")
        assert family.type == "gauge" or family.samples[0].name.endswith("_total")
        assert family.samples, family.name
        series = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len({*series}) == len(series)


def test_keys_are_no_labels(registry, pools):
    from prometheus_client import generate_latest

    registry.register(PoolCollector(pools))
    assert str(signature(8)) not in generate_latest(registry).decode()


def test_registering_asks_no_pool_and_a_scrape_asks_each_once(registry, pools):
    from prometheus_client import generate_latest

    pools["prefill"] = Pool(BUSY)
    registry.register(PoolCollector(pools))
    assert [pool.asked for pool in pools.values()] == [0, 0]
    generate_latest(registry)
    assert [pool.asked for pool in pools.values()] == [1, 1]


def test_pools_come_and_go(value, pools):
    pools["prefill"] = Pool(pool_stats(requests=7))
    assert value("requests_total", pool="prefill") == 7
    assert value("requests_total") == 1000
    del pools["prefill"]
    assert value("requests_total", pool="prefill") is None
    pools["prefill"] = Pool(pool_stats(requests=2))
    assert value("requests_total", pool="prefill") == 2


def test_two_collectors_of_the_same_metrics_are_refused(registry, pools):
    registry.register(PoolCollector(pools))
    with pytest.raises(ValueError, match="graphkit_pool_requests"):
        registry.register(PoolCollector(pools))


def test_no_counter_falls(value, pools):
    # Prometheus would add all of a counter that fell to the rate. Times are estimates, which fall.
    before = pools["decode"].now
    seconds = {"step": "launch", "phase": "request"}
    assert value("step_seconds_total", **seconds) == pytest.approx(1.8e-3)
    pools["decode"].now = replace(
        before, requests=1001, hits=959, steps={Step.LAUNCH: StepStats(901, 0.9)}
    )
    assert value("requests_total") == 1001
    assert value("hits_total") == 960
    assert value("step_seconds_total", **seconds) == pytest.approx(1.8e-3)
    pools["decode"].now = replace(
        before, requests=1009, hits=967, steps={Step.LAUNCH: StepStats(909, 2.1)}
    )
    assert value("hits_total") == 967
    assert value("step_seconds_total", **seconds) == pytest.approx(2.1e-3)


def test_a_pool_that_took_anothers_place_counts_from_its_own(value, pools):
    assert value("hits_total") == 960
    pools["decode"] = Pool(pool_stats(requests=3, hits=2))
    assert value("requests_total") == 3
    assert value("hits_total") == 2


def test_gauges_fall(value, pools):
    assert value("memory_bytes", part="execs") == 3 << 20
    pools["decode"].now = replace(BUSY, memory=PoolMemory(0, 1, 0, None), hits=500)
    assert value("memory_bytes", part="execs") == 1
    assert value("hit_ratio") == 0.5


def test_scrapes_from_many_threads_agree(registry, pools):
    collector = PoolCollector(pools)

    def scrape():
        for _ in range(20):
            for family in collector.collect():
                if family.name == "graphkit_pool_hits":
                    seen.append([sample.value for sample in family.samples])

    seen = []
    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[960]] * 80


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ([Pool(BUSY)], "pools: expected a mapping of names, came list"),
        ({1: Pool(BUSY)}, "pools: expected names, came 1"),
        ({"decode": BUSY}, r"pools\['decode'\]: expected a pool with stats\(\), came PoolStats"),
    ],
)
def test_what_is_no_pools_by_name_is_refused(registry, pools, says):
    with pytest.raises(TypeError, match=says):
        PoolCollector(pools)


def test_without_prometheus_client_it_says_what_to_install(monkeypatch, pools):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[metrics\]'"):
        PoolCollector(pools)


def test_importing_it_imports_no_prometheus_client():
    code = "import sys, graphkit.pool_metrics; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
