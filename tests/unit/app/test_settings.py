from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.settings import ApiSettings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_REDIS_URL", "unix:///run/valkey.sock")
    monkeypatch.setenv("DDPM_RESULTS_TTL_S", "60")
    monkeypatch.setenv("DDPM_SOMETHING_OF_A_WORKERS", "1")
    settings = ApiSettings()
    assert (str(settings.redis_url), settings.results_ttl_s) == ("unix:///run/valkey.sock", 60)


def test_the_server_listens_on_loopback_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DDPM_HOST", raising=False)
    assert ApiSettings().host == "127.0.0.1"


def test_images_are_kept_for_ten_years_at_most() -> None:
    ten_years_s = 10 * 365 * 24 * 3600
    assert ApiSettings(results_ttl_s=ten_years_s).results_ttl_s == ten_years_s
    with pytest.raises(ValidationError, match="results_ttl_s"):
        ApiSettings(results_ttl_s=ten_years_s + 1)


def test_a_redis_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="redis_url"):
        ApiSettings(redis_url="http://127.0.0.1:6379")
