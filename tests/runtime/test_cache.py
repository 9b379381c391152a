"""The folder of compiled programs: made for its user alone, and not used where others can write into it."""

import os
import stat

import jax
import pytest

from marigold_jax.runtime import compilation_cache
from marigold_jax.runtime.cache import user_cache


@pytest.fixture(autouse=True)
def nothing_is_compiled_into_it(monkeypatch):
    monkeypatch.delenv("MARIGOLD_JAX_CACHE", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def root(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("MARIGOLD_JAX_CACHE", str(tmp_path / "a" / "b"))
    return tmp_path


def test_folders_are_made_for_their_user_alone(root, capsys):
    before = os.umask(0)
    try:
        folder = user_cache("programs")
    finally:
        os.umask(before)
    assert folder == root / "a" / "b" / "programs" and folder.is_dir()
    for path in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    compilation_cache.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert capsys.readouterr().err == ""


def refused(capsys, *words):
    compilation_cache.enable_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not user_cache("programs").exists()
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "not used" in error and "MARIGOLD_JAX_CACHE" in error
    assert all(word in error for word in words)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777, 0o770])
def test_a_folder_that_others_can_write_is_not_used(root, capsys, mode):
    (root / "a" / "b" / "programs").mkdir(parents=True)
    (root / "a" / "b" / "programs").chmod(mode)
    refused(capsys, str(root / "a" / "b" / "programs"), f"can be written by others (mode {mode:o}, wanted 700)")


@pytest.mark.parametrize("above", ["a", "a/b"])
def test_a_folder_that_others_can_replace_is_not_used(root, capsys, above):
    (root / "a" / "b" / "programs").mkdir(parents=True, mode=0o700)
    (root / above).chmod(0o777)
    refused(capsys, f"{root / above} can be written by others (mode 777")


def test_nobody_replaces_what_is_in_a_sticky_folder(root, capsys):
    (root / "a" / "b" / "programs").mkdir(parents=True, mode=0o700)
    (root / "a").chmod(0o1777)
    assert user_cache("programs").is_dir() and capsys.readouterr().err == ""


def test_a_link_is_looked_at_from_both_ends(root, capsys):
    (root / "open" / "programs").mkdir(parents=True)
    (root / "open" / "programs").chmod(0o700)
    (root / "open").chmod(0o777)
    (root / "a").mkdir()
    (root / "a" / "b").symlink_to(root / "open")
    refused(capsys, "can be written by others (mode 777")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("whose", ["a/b/programs", "a"])
def test_a_folder_of_somebody_else_is_not_used(root, capsys, whose):
    (root / "a" / "b" / "programs").mkdir(parents=True, mode=0o700)
    os.chown(root / whose, 1234, -1)
    refused(capsys, f"{root / whose} belongs to user 1234, wanted {os.geteuid()}")


def test_what_the_user_chose_in_jax_is_the_users_choice(root, capsys):
    (root / "mine").mkdir()
    (root / "mine").chmod(0o777)
    jax.config.update("jax_compilation_cache_dir", str(root / "mine"))
    compilation_cache.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(root / "mine") and capsys.readouterr().err == ""
