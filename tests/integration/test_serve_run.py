"""`serve run serve_config.yaml`: the application as plain Ray Serve, without the launcher."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.processes import wait_until
from tests.service import ROOT, answers, free_port, launch_serve_run
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration


def test_serve_run_answers(small_store: SmallStore, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = free_port()  # the one difference to what a user runs
    # The language model: as it is where nobody says otherwise.
    service = launch_serve_run(config, small_store.data_dir, tmp_path, WEFT_LANGUAGE_MODEL__ENABLED="true")
    try:
        wait_until(lambda: answers(service), 120, "start of serve run")
        assert service.get("/livez").json() == {"status": "ok"}
        fan = small_store.fans["space"][0]
        with service.client() as client:
            top = client.recommend(fan, n=1).recommendations[0].item_id
            client.rate(fan, top, 5.0)
            assert top not in {r.item_id for r in client.recommend(fan, n=120).recommendations}
        wait_until(lambda: service.status()["language_model"].get("open"), 30, "the language model")
        answer = httpx.post(
            service.url + "/v1/generate", json={"text": "hello", "max_tokens": 2}, trust_env=False
        )
        assert answer.status_code == 200, answer.text
        service.interrupt()
        assert service.wait_for_exit() == 0
        service.assert_gone()
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()


def test_serve_run_beyond_loopback_asks_for_keys(small_store: SmallStore, tmp_path: Path) -> None:
    """Serve takes its address from a file that the settings know nothing of: the ingress looks for itself."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"] = {"host": "0.0.0.0", "port": free_port()}
    service = launch_serve_run(config, small_store.data_dir, tmp_path)
    try:
        wait_until(lambda: "'0.0.0.0' is not a loopback address" in service.logs(), 120, "the refusal")
        # Serve goes on trying to start it; nothing answers meanwhile.
        for _ in range(20):
            with contextlib.suppress(httpx.TransportError):
                assert not service.get("/v1/items?limit=1").is_success
            time.sleep(0.1)
        service.interrupt()
        service.wait_for_exit()
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()
