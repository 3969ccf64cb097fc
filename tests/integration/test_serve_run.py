"""`serve run serve_config.yaml`: the application as plain Ray Serve, without the launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.processes import wait_until
from tests.service import ROOT, free_port, launch
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration


def test_serve_run_answers(small_store: SmallStore, tmp_path: Path) -> None:
    port = free_port()
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port  # the one difference to what a user runs
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    serve = Path(sys.executable).with_name("serve")
    # No cluster of somebody else's: `serve run` would join one that it finds.
    local = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    local["WEFT_LANGUAGE_MODEL__ENABLED"] = "true"  # as it is where nobody says otherwise
    service = launch(small_store.data_dir, tmp_path, (str(serve), "run", str(path)), port=port, extra=local)
    try:

        def alive() -> bool:
            assert service.process.poll() is None, "serve run ended"
            try:
                return service.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(alive, 120, "start of serve run")
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
