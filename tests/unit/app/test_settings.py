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


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("anonymous_hosts", "gpu-box:8000", "gpu-box.example.com, or \\*"),
        ("anonymous_hosts", "http://gpu-box", "gpu-box.example.com, or \\*"),
        ("anonymous_hosts", "*.example.com", "gpu-box.example.com, or \\*"),
        ("anonymous_hosts", "ok, [::1]", "gpu-box.example.com, or \\*"),
        ("root_path", "ddpm", "as in /ddpm"),
        ("root_path", "/a b", "as in /ddpm"),
        ("root_path", "/v1", "choose another"),
        ("root_path", "/docs/ddpm", "choose another"),
        ("trusted_proxies", "proxy.example", "networks such as"),
        ("trusted_proxies", "10.0.0.1/8", "networks such as"),
        ("cors_origins", "app.example.com", "https://app.example.com"),
        ("cors_origins", "https://app.example.com/", "https://app.example.com"),
        ("cors_origins", "https://App.example.com", "https://app.example.com"),
        ("cors_origins", "https://*.example.com", "https://app.example.com"),
    ],
)
def test_a_setting_that_would_never_match_is_refused_with_a_remedy(
    name: str, value: str, remedy: str
) -> None:
    with pytest.raises(ValidationError, match=remedy):
        ApiSettings(**{name: value})


def test_settings_of_proxies_are_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_TRUSTED_PROXIES", "10.0.0.0/8, ::1,unix")
    monkeypatch.setenv("DDPM_CORS_ORIGINS", "https://app.example.com,http://localhost:3000")
    monkeypatch.setenv("DDPM_ROOT_PATH", "/team/ddpm/")
    monkeypatch.setenv("DDPM_ANONYMOUS_HOSTS", "gpu-box, ::1, other.example.,*")
    settings = ApiSettings()
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1", "unix")
    assert settings.cors_origins == ("https://app.example.com", "http://localhost:3000")
    assert settings.root_path == "/team/ddpm"
