"""The user's own settings: what is there counts, and nothing that is there is passed over."""

from __future__ import annotations

import os

import pytest

from sage_sandbox.disk.settings import SIZE_MAX, user_settings
from sage_sandbox.errors import SageError, UsageError


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "config"
    folder.mkdir(mode=0o700)
    return folder


def test_what_is_set_is_read(config):
    (config / "config.toml").write_text('audit_retention = "7d"\n')

    assert {"audit_retention": "7d"} == user_settings(config)


def test_without_a_file_or_a_folder_nothing_is_set(config, tmp_path):
    (tmp_path / "file").touch()

    assert [{}, {}, {}] == [user_settings(folder) for folder in (config, tmp_path / "none", tmp_path / "file" / "x")]


def test_what_is_no_toml_is_said(config):
    (config / "config.toml").write_text("audit_retention 7d")

    with pytest.raises(UsageError, match=r"config/config\.toml is not TOML"):
        user_settings(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_not_taken_for_nothing(config):
    (config / "config.toml").write_text('audit_retention = "7d"\n')
    (config / "config.toml").chmod(0)

    with pytest.raises(UsageError, match=r"config/config\.toml cannot be read: permission denied"):
        user_settings(config)


def test_what_is_too_large_or_a_link_is_refused(config):
    (config / "config.toml").write_bytes(b" " * (SIZE_MAX + 1))
    with pytest.raises(SageError, match="is larger than 1 MiB"):
        user_settings(config)
    (config / "config.toml").unlink()
    (config / "config.toml").symlink_to("/etc/hostname")
    with pytest.raises(SageError):
        user_settings(config)
